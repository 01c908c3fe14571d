"""``ckptlin decompose``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import csv_option, json_option, print_json, quiet_option
from ckptlin_cli.probing import (
    Probing,
    plot_option,
    probing_options,
    responses_option,
    tokens_options,
    with_null,
)
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.tables import echo_table, percent, write_csv

if TYPE_CHECKING:
    from ckptlin.outputs.decomposition import Decomposition, ModuleSums

__all__ = ["command"]

_HEADER = ("input", "(null)", "weight", "(null)", "both", "(null)", "|Δy| / |y|")


@make_command(
    "decompose",
    examples=[
        "ckptlin decompose ./grpo --responses responses.jsonl",
        "ckptlin decompose ./grpo --responses responses.jsonl --steps 0,20 --modules --plot ./figures",
    ],
)
@click.argument("source", nargs=-1, required=True, metavar="RUN|STORE|STEP=PATH...")
@responses_option(required=True)
@probing_options
@tokens_options
@click.option("--modules", "show_modules", is_flag=True, help="Show every linear layer by itself, too.")
@csv_option
@plot_option("Draw the shares by block and by kind.")
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    responses_path: Path,
    probing: Probing,
    num_tokens: int,
    seed: int,
    show_modules: bool,
    csv_path: Path | None,
    plot_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what the change of every linear layer's output is made of: Δy = WΔx + ΔWx + ΔWΔx.

    Of two checkpoints, the first and the last that are selected, at tokens of fixed responses: the part of the
    input, that of the weight, and that of both.  Shares are ⟨part, Δy⟩ / ‖Δy‖², which add up to 1.  The null is
    the same change of the weights, shuffled inside each tensor.
    """
    from ckptlin.outputs.activations import open_probed
    from ckptlin.outputs.decomposition import decompose

    progress = progress_bars(quiet)
    probed = open_probed(
        source, responses_path, num_tokens=num_tokens, seed=seed, progress=progress, **probing.given
    )
    found = decompose(probed, seed=seed, progress=progress)
    if csv_path is not None:
        write_csv(csv_path, found.to_rows())
    if plot_dir is not None:
        _draw(found, plot_dir)
    if as_json:
        print_json(found.to_dict())
        return
    _echo(found, show_modules=show_modules)


def _echo(found: "Decomposition", *, show_modules: bool) -> None:
    click.echo(
        f"{found.source}: from step {found.steps[0]} to step {found.steps[1]}, {found.num_states:,} tokens, "
        f"{len(found.modules)} linear layers"
    )
    click.echo("Shares of Δy = WΔx (input) + ΔWx (weight) + ΔWΔx (both); in brackets for the shuffled change\n")
    groups: list[tuple[Any, Any]] = [
        (found.by_layer(), found.by_layer(null=True)),
        (found.by_kind(), found.by_kind(null=True)),
    ]
    if show_modules:
        groups.append((found.modules, found.null))
    rows: list[tuple[str, ...]] = []
    for own, null in groups:
        rows += [_row(one, other) for one, other in zip(own, null, strict=True)]
        rows.append(("",) * (len(_HEADER) + 1))
    mean, null_mean = found.mean_shares(), found.mean_shares(null=True)
    rows.append(("mean of linear layers", *_shares(mean, null_mean), ""))
    echo_table(["", *_HEADER], rows)
    if found.left_out:
        click.echo(
            f"\nleft out: {len(found.left_out)} modules that are no plain linear layers or do not see every "
            f"token, such as {found.left_out[0]}"
        )
    rounding = max((one.rounding or 0.0) for one in found.modules)
    click.echo(
        f"\nThe parts leave at most {rounding:.1g} of |y| unexplained, which is rounding in {found.dtype}."
    )
    if mean is not None:
        click.echo(f"What dominates: {found.dominant}")


def _row(own: "ModuleSums", null: "ModuleSums") -> tuple[str, ...]:
    return (own.name, *_shares(own.shares, null.shares), "-" if own.relative is None else f"{own.relative:.3g}")


def _shares(own: tuple[float, ...] | None, null: tuple[float, ...] | None) -> tuple[str, ...]:
    cells: list[str] = []
    for part in range(3):
        share, of_null = (None if one is None else round(one[part], 3) + 0.0 for one in (own, null))
        cells += with_null(share, of_null, percent)
    return tuple(cells)


def _draw(found: "Decomposition", directory: Path) -> None:
    from ckptlin.report import PartShares, draw_decomposition, save_figure

    def bars(own: Any, null: Any) -> list[PartShares]:
        return [PartShares(one.name, one.shares, other.shares) for one, other in zip(own, null, strict=True)]

    directory.mkdir(parents=True, exist_ok=True)
    figure = draw_decomposition(
        bars(found.by_layer(), found.by_layer(null=True)),
        bars(found.by_kind(), found.by_kind(null=True)),
        title="What the change of linear layers' outputs is made of",
        lines=[
            f"step {found.steps[0]} to {found.steps[1]}; {found.num_states:,} tokens; "
            "hatched: the same change, shuffled"
        ],
    )
    save_figure(figure, directory / "decomposition.png")
