"""``ckptlin activations``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import csv_option, json_option, print_json, quiet_option
from ckptlin_cli.probing import (
    Probing,
    check_run_and_responses,
    compared_steps,
    fitted_options,
    plot_option,
    probing_options,
    responses_option,
    tokens_options,
    with_null,
)
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.tables import echo_pairs, echo_table, hundredths, percent, write_csv

if TYPE_CHECKING:
    from ckptlin.outputs.activation_fit import ActivationFit, LayerFit
    from ckptlin.outputs.activations import ActivationPlan

__all__ = ["command"]

_HEADER = ("moved", "mean", "(null)", "median", "(null)", "> 0.7", "(null)", "|last − first| / |first|")


@make_command(
    "activations",
    examples=[
        "ckptlin activations ./grpo --responses responses.jsonl --out ./grpo.states",
        "ckptlin activations ./grpo --responses responses.jsonl --out ./grpo.states --steps 0:20 --plot ./figs",
    ],
)
@click.argument("source", nargs=-1, metavar="[RUN|STORE|STEP=PATH...]")
@responses_option(required=False)
@fitted_options("states")
@probing_options
@click.option(
    "--dim",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="K",
    help="Coordinates to keep of a state.",
)
@tokens_options
@csv_option
@plot_option("Draw R² layer by layer.")
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    responses_path: Path | None,
    out_dir: str,
    probing: Probing,
    dim: int,
    num_tokens: int,
    seed: int,
    no_fit: bool,
    csv_path: Path | None,
    plot_dir: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute each layer's hidden states under every checkpoint, and how linear they are in the step.

    The states are those at tokens of fixed responses, each multiplied with a fixed random matrix so that --dim
    coordinates are left.  A step is on the disk when it is computed: the same command goes on where a killed
    one was, and adds the steps that a growing run has since.  Without a run it fits what --out holds.
    """
    from ckptlin.outputs.activation_fit import fit_activations
    from ckptlin.outputs.activation_store import ActivationStore
    from ckptlin.outputs.activations import compute_activations, plan_activations

    check_run_and_responses(source, responses_path, dry_run=dry_run)
    progress = progress_bars(quiet)
    result: dict[str, Any] = {}
    if responses_path is not None:
        plan = plan_activations(
            source,
            responses_path,
            out_dir,
            dim=dim,
            seed=seed,
            num_tokens=num_tokens,
            progress=progress,
            **probing.given,
        )
        if dry_run:
            _echo_plan(plan, as_json=as_json)
            return
        computed = compute_activations(plan, progress=progress)
        result = computed.to_dict()
        if not as_json:
            click.echo(
                f"{out_dir}: {result['num_states']:,} states in {len(result['layers'])} layers at "
                f"{len(result['steps'])} steps; {len(computed.added)} computed now in "
                f"{computed.elapsed_s:.1f} s"
            )
    store = ActivationStore(out_dir)
    if no_fit or (responses_path is not None and len(store.steps) < 2):
        if as_json:
            print_json(result)
        return
    fit = fit_activations(store, steps=probing.steps, seed=seed)
    if csv_path is not None:
        write_csv(csv_path, [layer.to_row() for layer in fit.layers])
    if plot_dir is not None:
        _draw(fit, plot_dir)
    if as_json:
        print_json(result | {"fit": fit.to_dict()})
        return
    _echo_fit(fit)


def _echo_plan(plan: "ActivationPlan", *, as_json: bool) -> None:
    data = plan.to_dict()
    if as_json:
        print_json(data)
        return
    echo_pairs(
        [
            *compared_steps(plan),
            ("states", _chosen(data["num_states"], data["num_distinct"], data["num_tokens"])),
            ("layers", f"{len(data['layers'])}, {data['dim']} of {data['hidden']} coordinates each"),
            ("would read", f"{format_bytes(data['bytes_in'])} of weights"),
            ("would write", f"{format_bytes(data['bytes_out'])} at most"),
            ("computes in", data["dtype"]),
            ("out", data["out"]),
        ]
    )


def _chosen(states: int, distinct: int, tokens: int) -> str:
    return f"{states:,} of {distinct:,} tokens behind distinct texts, of {tokens:,} tokens in all"


def _echo_fit(fit: "ActivationFit") -> None:
    from ckptlin.store.store import describe_steps

    states = fit.layers[0].num_states
    click.echo(
        f"{fit.source}: {describe_steps(fit.steps)}, {_chosen(states, fit.num_distinct, fit.num_tokens)}; "
        f"{fit.dim} coordinates for {fit.hidden}"
    )
    click.echo("R² of every coordinate on the step; in brackets what random walks would show\n")
    echo_table(["", *_HEADER], [_row(layer) for layer in fit.layers])
    click.echo("\nmoved: coordinates that changed at all; the others have no R².  mean: over tokens.")
    if len(fit.steps) == 2:
        click.echo("With two steps every line fits: R² says nothing here.")


def _row(layer: "LayerFit") -> tuple[str, ...]:
    figures, null = layer.figures, layer.null
    return (
        layer.name,
        percent(1 - layer.unchanged / layer.num_coordinates),
        *with_null(layer.mean, null.mean, hundredths),
        *with_null(figures.median, null.median, hundredths),
        *with_null(figures.above_7, null.above_7, percent),
        "-" if layer.change is None else f"{layer.change:.3g}",
    )


def _draw(fit: "ActivationFit", directory: Path) -> None:
    from ckptlin.report import LayerR2, draw_layer_r2, save_figure
    from ckptlin.store.store import describe_steps

    directory.mkdir(parents=True, exist_ok=True)
    figure = draw_layer_r2(
        [LayerR2(layer.name, layer.mean, layer.figures, layer.null) for layer in fit.layers],
        title="How linear each layer's hidden states are in the step",
        lines=[
            f"{describe_steps(fit.steps)}; {fit.layers[0].num_states:,} states, {fit.dim} coordinates for "
            f"{fit.hidden}"
        ],
    )
    save_figure(figure, directory / "activation_r2.png")
