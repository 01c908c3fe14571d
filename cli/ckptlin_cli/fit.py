"""``ckptlin fit``."""

from pathlib import Path
from typing import Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import (
    cluster_options,
    csv_option,
    json_option,
    memory_options,
    print_json,
    quiet_option,
    segment_option,
    selection_options,
    source_options,
    steps_option,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import note_skipped, progress_bars
from ckptlin_cli.tables import echo_pairs, echo_table, percent, quantity, write_csv

__all__ = ["command"]

_HEADER = (
    "params",
    "unchanged",
    "moved: median",
    "(null)",
    "> 0.7",
    "(null)",
    "paper: share",
    "median",
    "(null)",
    "> 0.7",
    "(null)",
    "|update|",
    "rounding",
)


@make_command(
    "fit",
    examples=[
        "ckptlin fit ./run.store",
        "ckptlin fit ./run.store --steps 0:1000:100 --name first --csv first.csv",
    ],
)
@click.argument("source", nargs=-1, required=True, metavar="STORE|RUN|STEP=PATH...")
@steps_option
@segment_option
@selection_options
@click.option("--name", default="default", show_default=True, help="Name of the fit in the store.")
@click.option(
    "--maps",
    metavar="LIST",
    help="Per-parameter maps to keep in the store: all, none, or some of r2, slope, intercept, each with a "
    "type behind it if you like (r2:float32).  [default: r2,slope at 16 bits; none for a run]",
)
@click.option(
    "--gram/--no-gram",
    default=None,
    help="Keep the Gram matrices in the store too, out of the same pass (see `ckptlin gram`).  [default: for a "
    "fit of all steps and tensors, if memory allows]",
)
@click.option(
    "--by",
    type=click.Choice(["kind", "layer", "tensor"]),
    default="kind",
    show_default=True,
    help="Rows of the table.",
)
@csv_option
@click.option("--no-keep", is_flag=True, help="Do not keep the fit in the store; it is then only read.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random walks of the null.")
@source_options
@memory_options
@cluster_options
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    steps: str | None,
    segment: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str,
    maps: str | None,
    gram: bool | None,
    by: str,
    csv_path: Path | None,
    no_keep: bool,
    seed: int,
    base: str | None,
    skip_incomplete: bool,
    memory: int | None,
    workers: int | None,
    dry_run: bool,
    scheduler: str | None,
    processes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit every parameter on the training step: how linear is the run?

    Beside each figure stands the null: what random walks over the same steps, on the same dtype grid, would
    show.  A store keeps the fit under its name; a run is read once, and nothing is kept.
    """
    from ckptlin.checkpoints import RunTrajectories
    from ckptlin.fit import fit, parse_maps, plan_fit
    from ckptlin.source import open_source
    from ckptlin.store.store import TrajectoryStore, describe_steps

    opened = open_source(source, base=base, skip_incomplete=skip_incomplete)
    progress = progress_bars(quiet)
    if isinstance(opened, RunTrajectories):
        note_skipped(progress, opened.skipped)
    options: dict[str, Any] = {
        "name": name,
        "steps": steps,
        "segment": segment,
        "include": include,
        "exclude": exclude,
        "maps": None if maps is None else parse_maps(maps),
        "gram": gram,
        "memory_bytes": memory,
        "num_workers": workers,
    }
    cluster: dict[str, Any] = {"scheduler": scheduler, "processes": processes}
    if dry_run:
        plan = plan_fit(opened, **options)
        for warning in plan.warnings:
            progress.note(warning)
        if as_json:
            print_json(plan.to_dict())
            return
        echo_pairs(
            [
                ("would fit", f"{describe_steps(plan.steps)}, {len(plan.tensors)} tensors"),
                ("would read", f"{format_bytes(plan.bytes_in)} of weights"),
                ("would write", f"{format_bytes(plan.bytes_out)} of maps, before compression"),
                ("Gram matrices", "in the same pass" if plan.gram else "no"),
                ("memory", f"{format_bytes(plan.memory.peak_bytes)}, {plan.memory.num_workers} workers"),
            ]
        )
        return
    result = fit(
        opened,
        **options,
        **cluster,
        seed=seed,
        keep=not no_keep,
        progress=progress,
    )
    summary = result.summary
    if csv_path is not None:
        write_csv(csv_path, summary.to_rows())
    if as_json:
        print_json(result.to_dict())
        return
    model = summary.model()
    groups = {"kind": summary.kinds, "layer": summary.layers, "tensor": summary.tensors}[by]()
    click.echo(
        f"{result.source}: {describe_steps(summary.steps)}, {model.num_tensors} tensors, "
        f"{quantity(model.num_params)} parameters"
    )
    click.echo("R² of every parameter on the step; in brackets what random walks would show\n")
    echo_table([by, *_HEADER], [_row(group) for group in [*groups, model]])
    click.echo(
        "\nmoved: parameters whose bits changed.  paper: with range > 1e-4 and at least 4 distinct values.\n"
        "|update|: norm of last − first, relative to the first.\n"
        "rounding: share of the residual variance that rounding to the dtype explains."
    )
    if len(summary.steps) == 2:
        click.echo("With two steps every line fits: R² says nothing here.")
    where = "not kept"
    if isinstance(opened, TrajectoryStore) and not no_keep:
        kept = ", ".join(f"{name} ({dtype})" for name, dtype in result.maps.items()) or "none"
        where = f"kept as fit {result.name!r}, maps: {kept}"
        if result.keeps_gram:
            where += "; Gram matrices (`ckptlin gram`)"
    click.echo(f"\n{format_bytes(result.bytes_in)} of weights in {result.elapsed_s:.1f} s; {where}")


def _row(group: Any) -> tuple[str, ...]:
    return (
        group.name,
        quantity(group.num_params),
        percent(group.share_unchanged),
        _number(group.moved.median),
        f"({_number(group.null_moved.median)})",
        percent(group.moved.above_7),
        f"({percent(group.null_moved.above_7)})",
        percent(group.paper.count / group.num_params),
        _number(group.paper.median),
        f"({_number(group.null_paper.median)})",
        percent(group.paper.above_7),
        f"({percent(group.null_paper.above_7)})",
        "-" if group.relative_update is None else f"{group.relative_update:.1e}",
        percent(group.rounding_share),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
