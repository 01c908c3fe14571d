"""``ckptlin gram``."""

import time
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

_HEADER = ("params", "|update|", "cosine", "straightness", "rank 1", "R²")


@make_command(
    "gram",
    examples=["ckptlin gram ./run.store", "ckptlin gram ./run --steps 0:500 --by layer --csv layers.csv"],
)
@click.argument("source", nargs=-1, required=True, metavar="STORE|RUN|STEP=PATH...")
@steps_option
@segment_option
@selection_options
@click.option(
    "--by",
    type=click.Choice(["kind", "layer", "tensor"]),
    default="kind",
    show_default=True,
    help="Rows of the table.",
)
@csv_option
@click.option("--no-keep", is_flag=True, help="Do not keep the matrices in the store; it is then only read.")
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
    by: str,
    csv_path: Path | None,
    no_keep: bool,
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
    """Multiply every tensor's moves: how far does a run go, how straight, in how many directions?

    A store keeps the matrices of all its steps; when steps are appended, only products with these are computed.
    A run is read once, and nothing is kept.
    """
    from ckptlin.checkpoints import RunTrajectories
    from ckptlin.gram import gram, plan_gram
    from ckptlin.gram_statistics import LEVELS, movements
    from ckptlin.segments import segments_to_dict
    from ckptlin.source import open_source
    from ckptlin.store.store import describe_steps

    opened = open_source(source, base=base, skip_incomplete=skip_incomplete)
    progress = progress_bars(quiet)
    if isinstance(opened, RunTrajectories):
        note_skipped(progress, opened.skipped)
    options: dict[str, Any] = {
        "steps": steps,
        "segment": segment,
        "include": include,
        "exclude": exclude,
        "memory_bytes": memory,
        "num_workers": workers,
        "keep": not no_keep,
    }
    plan = plan_gram(opened, **options)
    for warning in plan.warnings:
        progress.note(warning)
    if dry_run:
        if as_json:
            print_json(plan.to_dict())
            return
        again = (
            "" if plan.num_passes <= 1 else f", each {plan.num_passes:.1f} times: memory holds no more at once"
        )
        echo_pairs(
            [
                ("would multiply", f"{describe_steps(plan.steps)}, {len(plan.tensors)} tensors"),
                ("known already", describe_steps(plan.steps[: plan.num_known])),
                ("would read", f"{format_bytes(plan.bytes_in)} of weights{again}"),
                ("would write", f"{format_bytes(plan.bytes_out)}, before compression"),
                ("memory", f"{format_bytes(plan.memory.peak_bytes)}, {plan.memory.num_workers} workers"),
            ]
        )
        return
    started = time.perf_counter()
    grams = gram(opened, **options, scheduler=scheduler, processes=processes, progress=progress)
    elapsed_s = time.perf_counter() - started
    if csv_path is not None:
        write_csv(
            csv_path,
            [{"level": level, **found.to_row()} for level in LEVELS for found in movements(grams, level)],
        )
    (model,) = movements(grams, "model")
    if as_json:
        groups = {f"{level}s": [found.to_dict() for found in movements(grams, level)] for level in LEVELS[1:]}
        print_json(
            {
                "source": opened.location,
                "steps": list(grams.steps),
                **segments_to_dict(grams.steps, opened.jumps),
                "bytes_in": plan.bytes_in,
                "elapsed_s": elapsed_s,
                "model": model.to_dict(),
                **groups,
            }
        )
        return
    click.echo(
        f"{opened.location}: {describe_steps(grams.steps)}, {model.num_tensors} tensors, "
        f"{quantity(model.num_params)} parameters\n"
    )
    echo_table([by, *_HEADER], [_row(found) for found in [*movements(grams, by), model]])
    click.echo(
        "\n|update|: norm of last − first.  cosine: between neighbouring updates, in the mean.\n"
        "straightness: |update| over the length of the path.  rank 1: share of the first direction.\n"
        "R²: share of the movement that a straight line in the step explains."
    )
    if len(grams.steps) == 2:
        click.echo("Between two steps every path is straight: only |update| says something here.")
    where = "kept in the store" if plan.is_kept else "not kept"
    if plan.num_known == len(plan.rows):
        where = "from what the store keeps"
    click.echo(f"\n{format_bytes(plan.bytes_in)} of weights in {elapsed_s:.1f} s; {where}")


def _row(found: Any) -> tuple[str, ...]:
    return (
        found.name,
        quantity(found.num_params),
        f"{found.update_norm:.3g}",
        _number(found.mean_cosine),
        _number(found.straightness),
        percent(found.rank1_share),
        _number(found.r2),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
