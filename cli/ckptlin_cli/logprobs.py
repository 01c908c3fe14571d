"""``ckptlin logprobs``."""

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
    with_null,
)
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.tables import echo_pairs, echo_table, hundredths, percent, write_csv

if TYPE_CHECKING:
    from ckptlin.outputs.log_probs import LogProbPlan
    from ckptlin.outputs.token_fit import TokenFit, TokenTrajectory

__all__ = ["command"]

_HEADER = (
    "tokens",
    "moved: median",
    "(null)",
    "> 0.7",
    "(null)",
    "far: share",
    "median",
    "(null)",
    "> 0.7",
    "(null)",
)


@make_command(
    "logprobs",
    examples=[
        "ckptlin logprobs ./run --responses responses.jsonl --out ./run.tokens",
        "ckptlin logprobs ./run --responses responses.jsonl --out ./run.tokens --steps 0:20 --plot ./figures",
    ],
)
@click.argument("source", nargs=-1, metavar="[RUN|STORE|STEP=PATH...]")
@responses_option(required=False)
@fitted_options("log-probabilities")
@probing_options
@click.option("--engine", default="hf", show_default=True, metavar="NAME", help="hf or vllm.")
@click.option(
    "--tensor-parallel", type=click.IntRange(min=1), default=1, help="Devices that share a model (vllm)."
)
@click.option(
    "--gpu-memory", type=click.FloatRange(0, 1, min_open=True), default=0.9, help="Share that vllm may take."
)
@click.option(
    "--moving", type=click.IntRange(min=0), default=5, show_default=True, help="Tokens to list, up and down."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random walks of the null.")
@csv_option
@plot_option("Draw the histogram of R², and the tokens that move most.")
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    responses_path: Path | None,
    out_dir: str,
    probing: Probing,
    engine: str,
    tensor_parallel: int,
    gpu_memory: float,
    no_fit: bool,
    moving: int,
    seed: int,
    csv_path: Path | None,
    plot_dir: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute what each checkpoint gives the tokens of fixed responses, and how linear that is in the step.

    A step is on the disk when it is computed: the same command goes on where a killed one was, and adds
    the steps that a growing run has since.  Without a run it fits what --out holds.  Beside each figure of
    the fit stands the null: what random walks of the tokens' own step sizes would show.
    """
    from ckptlin.outputs.log_probs import compute_log_probs, plan_log_probs
    from ckptlin.outputs.token_fit import fit_tokens
    from ckptlin.outputs.token_store import TokenStore

    check_run_and_responses(source, responses_path, dry_run=dry_run)
    progress = progress_bars(quiet)
    result: dict[str, Any] = {}
    if responses_path is not None:
        plan = plan_log_probs(
            source,
            responses_path,
            out_dir,
            engine=engine,
            tensor_parallel=tensor_parallel,
            gpu_memory=gpu_memory,
            progress=progress,
            **probing.given,
        )
        if dry_run:
            _echo_plan(plan, as_json=as_json)
            return
        computed = compute_log_probs(plan, progress=progress)
        result = computed.to_dict()
        if not as_json:
            speed = result["tokens_per_s"]
            click.echo(
                f"{out_dir}: {result['num_tokens']:,} tokens of {result['num_responses']:,} responses at "
                f"{len(result['steps'])} steps; {len(computed.added)} computed now in "
                f"{computed.elapsed_s:.1f} s" + (f" ({speed:,.0f} tokens/s)" if speed else "")
            )
    store = TokenStore(out_dir)
    if no_fit or (responses_path is not None and len(store.steps) < 2):
        if as_json:
            print_json(result)
        return
    fit = fit_tokens(store, steps=probing.steps, num_moving=max(moving, 4 if plot_dir else 0), seed=seed)
    if csv_path is not None:
        write_csv(csv_path, [group.to_row() for group in fit.groups])
    if plot_dir is not None:
        _draw(fit, plot_dir)
    if as_json:
        print_json(result | {"fit": fit.to_dict()})
        return
    _echo_fit(fit, moving)


def _echo_plan(plan: "LogProbPlan", *, as_json: bool) -> None:
    data = plan.to_dict()
    if as_json:
        print_json(data)
        return
    echo_pairs(
        [
            *compared_steps(plan),
            ("responses", f"{data['num_responses']:,}, {data['num_tokens']:,} tokens"),
            ("would read", f"{format_bytes(data['bytes_in'])} of weights"),
            ("engine", f"{data['engine']}, {data['dtype']}"),
            ("out", data["out"]),
        ]
    )


def _echo_fit(fit: "TokenFit", moving: int) -> None:
    from ckptlin.store.store import describe_steps

    whole = fit.groups[0].num_tokens
    click.echo(
        f"{fit.source}: {describe_steps(fit.steps)}, {whole:,} tokens of {fit.num_responses:,} responses, "
        f"{fit.num_distinct:,} behind distinct texts"
    )
    click.echo("R² of every token's log-probability on the step; in brackets what random walks would show\n")
    echo_table(["", *_HEADER], [_row(group) for group in fit.groups])
    click.echo(
        "\nmoved: tokens whose log-probability changed.  far: with |last − first| > 0.2, as in the paper."
    )
    if len(fit.steps) == 2:
        click.echo("With two steps every line fits: R² says nothing here.")
    for title, tokens in (("up", fit.up), ("down", fit.down)):
        if tokens[:moving]:
            click.echo(f"\nThe tokens that move {title} most, each text once:")
            echo_table(
                ["before and token", "problem", "position", "first", "last", "R²", "times"],
                [_token_row(token) for token in tokens[:moving]],
            )


def _row(group: Any) -> tuple[str, ...]:
    cells = [group.name, f"{group.num_tokens:,}"]
    for figures, null in ((group.moved, group.null_moved), (group.far, group.null_far)):
        if figures is group.far:
            cells.append(percent(figures.count / group.num_tokens))
        cells += with_null(figures.median, null.median, hundredths)
        cells += with_null(figures.above_7, null.above_7, percent)
    return tuple(cells)


def _token_row(token: "TokenTrajectory") -> tuple[str, ...]:
    before = repr(token.before)[1:-1][-24:]
    return (
        f"…{before} ▸ {token.text!r}",
        f"{token.problem_id}#{token.sample}",
        str(token.position),
        f"{token.values[0]:.2f}",
        f"{token.values[-1]:.2f}",
        f"{token.r2:.2f}",
        str(token.count),
    )


def _draw(fit: "TokenFit", directory: Path) -> None:
    from ckptlin.report import (
        MovingToken,
        TokenPopulation,
        draw_moving_tokens,
        draw_token_histogram,
        save_figure,
    )
    from ckptlin.store.store import describe_steps

    directory.mkdir(parents=True, exist_ok=True)
    whole = fit.groups[0]
    populations = [
        TokenPopulation(
            "all that moved", whole.moved, whole.null_moved, fit.histogram[0], fit.null_histogram[0]
        ),
        TokenPopulation(
            "|last − first| > 0.2", whole.far, whole.null_far, fit.histogram[1], fit.null_histogram[1]
        ),
    ]
    lines = [f"{describe_steps(fit.steps)}, {fit.num_responses:,} responses"]
    histogram = draw_token_histogram(
        populations,
        num_tokens=whole.num_tokens,
        title="How linear each token's log-probability is in the step",
        lines=lines,
    )
    save_figure(histogram, directory / "token_r2_histogram.png")
    up, down = (
        [MovingToken(t.before, t.text, t.values, t.slope, t.intercept, t.r2) for t in tokens]
        for tokens in (fit.up, fit.down)
    )
    moving = draw_moving_tokens(
        up, down, steps=fit.steps, title="The tokens that move most, up and down", lines=lines
    )
    save_figure(moving, directory / "token_trajectories.png")
