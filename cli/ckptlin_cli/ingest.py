"""``ckptlin ingest``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import (
    cluster_options,
    json_option,
    memory_options,
    print_json,
    quiet_option,
    source_options,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import note_skipped, progress_bars
from ckptlin_cli.tables import echo_pairs

if TYPE_CHECKING:
    from ckptlin.segments import Jump

__all__ = ["command"]


@make_command(
    "ingest",
    examples=[
        "ckptlin ingest ./run ./run.store",
        "ckptlin ingest 0=./base 100=./a 200=./b ./run.store --memory 512MB",
    ],
)
@click.argument("run", nargs=-1, required=True, metavar="RUN|STEP=PATH...")
@click.argument("store", type=click.Path())
@source_options
@click.option(
    "--replace", "replace_steps", is_flag=True, help="Let a checkpoint replace a step with other content."
)
@click.option(
    "--codec",
    type=click.Choice(["pack", "lz4", "zstd", "archive"]),
    help="Compressor of a new store: pack is the fastest, archive the smallest; lz4 and zstd are general.  "
    "[default: pack]",
)
@click.option(
    "--archive",
    is_flag=True,
    help="The same as --codec archive: the smallest store, which takes several times as long to write.",
)
@memory_options
@cluster_options
@json_option
@quiet_option
def command(
    run: tuple[str, ...],
    store: str,
    base: str | None,
    skip_incomplete: bool,
    replace_steps: bool,
    codec: str | None,
    archive: bool,
    memory: int | None,
    workers: int | None,
    dry_run: bool,
    scheduler: str | None,
    processes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Stream a run's checkpoints into a trajectory store.

    RUN is the directory that holds the checkpoints (checkpoint-N, global_step_N, step_N, ...), or each is given
    as STEP=PATH.  RUN, PATH and STORE may be URLs, such as s3://bucket/run.  The same command again
    appends what is new; an interrupted one is gone on with.
    """
    from ckptlin.errors import InputError
    from ckptlin.ingest import ingest
    from ckptlin.ingest_plan import plan_ingest
    from ckptlin.store.store import describe_steps

    if archive and codec not in (None, "archive"):
        raise InputError(f"--archive is --codec archive, and --codec {codec} is given as well; leave one out")
    progress = progress_bars(quiet)
    options: dict[str, Any] = {
        "base": base,
        "replace_steps": replace_steps,
        "skip_incomplete": skip_incomplete,
        "compressor": codec or ("archive" if archive else "pack"),
        "memory_bytes": memory,
        "num_workers": workers,
        "progress": progress,
    }
    if dry_run:
        plan = plan_ingest(run, store, **options)
        with plan.run:
            note_skipped(progress, plan.run.skipped)
            if as_json:
                print_json(plan.to_dict())
                return
            echo_pairs(
                [
                    ("would add", describe_steps(plan.added)),
                    ("already in", describe_steps(plan.present)),
                    *_jumps("would note", plan.jumps_added),
                    ("would read", format_bytes(plan.bytes_in)),
                    ("memory", f"{format_bytes(plan.memory.peak_bytes)}, {plan.memory.num_workers} workers"),
                ]
            )
            return
    result = ingest(run, store, **options, scheduler=scheduler, processes=processes)
    note_skipped(progress, result.skipped)
    if as_json:
        print_json(result.to_dict())
        return
    pairs = [("store", result.store.location)]
    if result.present:
        pairs.append(("already in", describe_steps(result.present)))
    nothing = "no steps" if result.jumps_added else "nothing: the store is up to date"
    pairs.append(("added", describe_steps(result.added) if result.added else nothing))
    pairs += _jumps("jumps noted", result.jumps_added)
    if result.resumed_chunks:
        pairs.append(("resumed", f"{result.resumed_chunks} chunks that an interrupted ingest had written"))
    pairs += [
        ("now holds", f"{describe_steps(result.store.steps)}, {len(result.store.tensors)} tensors"),
        (
            "size",
            f"{format_bytes(result.raw_bytes)} of weights in {format_bytes(result.stored_bytes)} "
            f"(ratio {result.raw_bytes / max(result.stored_bytes, 1):.2f})",
        ),
        ("time", f"{result.elapsed_s:.1f} s"),
    ]
    echo_pairs(pairs)


def _jumps(name: str, jumps: "Sequence[Jump]") -> list[tuple[str, str]]:
    return [(name, "; ".join(map(str, jumps)))] if jumps else []
