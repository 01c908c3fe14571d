"""``ckptlin extrapolate``."""

from pathlib import Path
from typing import Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import (
    SIZE,
    cluster_options,
    json_option,
    memory_options,
    out_option,
    print_json,
    quiet_option,
    segment_option,
    source_options,
    steps_option,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import note_skipped, progress_bars
from ckptlin_cli.tables import echo_pairs, percent

__all__ = ["command"]


@make_command(
    "extrapolate",
    examples=[
        "ckptlin extrapolate ./run.store --step 2000 --out ./step-2000",
        "ckptlin extrapolate 300=./a 600=./b --step 900 --method two-point --out ./step-900",
    ],
)
@click.argument("source", nargs=-1, required=True, metavar="STORE|RUN|STEP=PATH...")
@click.option("--step", "target", type=int, required=True, help="Step to predict.")
@out_option
@click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="See `ckptlin methods`; `auto` takes what the run's own past shows to be best.",
)
@steps_option
@segment_option
@click.option("--from", "from_step", type=int, metavar="STEP", help="First checkpoint of two-point.")
@click.option("--to", "to_step", type=int, metavar="STEP", help="Second checkpoint of two-point.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Tensors that keep their last value; may be repeated; `off` for none.  [default: norm for two-point]",
)
@click.option("--min-r2", type=float, metavar="R2", help="Parameters with a lower R² keep their last value.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Of the weights written; float32 keeps what bfloat16 rounds away.  [default: the source's]",
)
@click.option(
    "--max-shard-size", type=SIZE, metavar="SIZE", help="Largest file.  [default: the source's files]"
)
@click.option(
    "--intervals",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write prediction-interval widths of every tensor, as .json or .csv.",
)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is there.")
@source_options
@memory_options
@cluster_options
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    target: int,
    out_dir: str,
    method: str,
    steps: str | None,
    segment: str | None,
    from_step: int | None,
    to_step: int | None,
    keep: tuple[str, ...],
    min_r2: float | None,
    dtype: str | None,
    max_shard_size: int | None,
    intervals: Path | None,
    overwrite: bool,
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
    """Write the checkpoint of a step that was never trained.

    It loads with transformers and vLLM as any other; ckptlin.json and the model card say how it was made.
    """
    from ckptlin.checkpoints import RunTrajectories
    from ckptlin.extrapolate import extrapolate, plan_extrapolation
    from ckptlin.source import open_source

    opened = open_source(source, base=base, skip_incomplete=skip_incomplete)
    progress = progress_bars(quiet)
    if isinstance(opened, RunTrajectories):
        note_skipped(progress, opened.skipped)
    options: dict[str, Any] = {
        "method": method,
        "steps": steps,
        "segment": segment,
        "from_step": from_step,
        "to_step": to_step,
        "keep": None if not keep else () if keep == ("off",) else keep,
        "min_r2": min_r2,
        "dtype": dtype,
        "max_shard_bytes": max_shard_size,
        "overwrite": overwrite,
        "memory_bytes": memory,
        "num_workers": workers,
    }
    cluster: dict[str, Any] = {"scheduler": scheduler, "processes": processes}
    if dry_run:
        plan = plan_extrapolation(opened, target, out_dir, **options, with_intervals=intervals is not None)
        if as_json:
            print_json(plan.to_dict())
            return
        echo_pairs(
            [
                ("would write", f"{plan.out_dir}, {format_bytes(plan.bytes_out)}"),
                ("method", f"{plan.method_text} over steps {', '.join(map(str, plan.steps))}"),
                ("coefficients", _coefficients(plan)),
                ("would read", f"{format_bytes(plan.bytes_in)} of weights{_twice(plan)}"),
                ("memory", f"{format_bytes(plan.peak_bytes)}, {plan.memory.num_workers} workers"),
            ]
        )
        for warning in plan.warnings:
            progress.note(warning)
        return
    result = extrapolate(opened, target, out_dir, **options, **cluster, intervals=intervals, progress=progress)
    if as_json:
        print_json(result.to_dict())
        return
    record = result.record
    rules = list(record["tensors"].values())
    lost = result.num_lost / result.num_params if result.num_params else None
    extrapolated, kept, copied = (rules.count(rule) for rule in ("extrapolate", "keep", "copy"))
    pairs = [
        ("wrote", str(result.out_dir)),
        ("method", f"{record['method']} over {len(record['steps'])} checkpoints, step {target}"),
        (
            "tensors",
            f"{extrapolated} extrapolated, {kept} kept, {copied} copied",
        ),
        *_trust(record),
        ("rounding", f"{percent(lost)} of the parameters extrapolated stayed as in the last checkpoint"),
    ]
    if min_r2 is not None:
        pairs.append(("gate", f"{result.num_gated:,} parameters held, R² under {min_r2}"))
    if intervals is not None:
        pairs.append(("intervals", str(intervals)))
    pairs.append(("time", f"{result.elapsed_s:.1f} s"))
    echo_pairs(pairs)


def _twice(plan: Any) -> str:
    if plan.gram_plan is None:
        return ""
    return f", {format_bytes(plan.gram_plan.bytes_in)} of them for Gram matrices"


def _coefficients(plan: Any) -> str:
    """Describe the coefficients of a plan in a line."""
    shown = plan.to_dict()
    coefficients = shown["coefficients"]
    if plan.coefficients is None:
        return "follow from Gram matrices, which have to be computed first"
    if coefficients is None:
        return f"none; {shown['rank_one']['factor']:+.4f} times the first component of each update"
    if isinstance(coefficients, dict):
        return f"of each of {len(coefficients)} tensors (--json)"
    return ", ".join(f"{a:+.4f}" for a in coefficients)


def _trust(record: Any) -> list[tuple[str, str]]:
    """Say why this method, and what to expect of it."""
    pairs = [("chosen", record["reason"])] if record["auto"] else []
    expected = record["expected"]
    if expected is not None and expected["skill"] is not None:
        after = expected["skill_after_rounding"]
        rounded = "" if after is None else f", {after:.2f} after rounding"
        pairs.append(
            ("skill to expect", f"{expected['skill']:.2f}{rounded} (0: the last checkpoint, 1: right)")
        )
    return pairs
