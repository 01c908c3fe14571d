"""Predict a checkpoint at a step that was never trained, and write it block by block."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.block_extrapolate import BlockPredictor, Losses, PredictionItem
from ckptlin.checkpoints import CheckpointWriter, RunTrajectories, WeightFilePlan, plan_files
from ckptlin.checkpoints.output_directory import check_output
from ckptlin.checkpoints.run import PROVENANCE_NAME
from ckptlin.dtypes import TensorDType, from_zarr, is_fitted
from ckptlin.errors import InputError, SelectionError
from ckptlin.execution import available_workers, batches, open_executor
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.methods import parse_method
from ckptlin.model_card import model_card, provenance
from ckptlin.naming import is_buffer, matches, select
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.selection import select_rows
from ckptlin.store.store import TrajectoryStore, describe_steps
from ckptlin.template import Template, template_of
from ckptlin.trajectory import Block

__all__ = ["ExtrapolationPlan", "ExtrapolationResult", "extrapolate", "plan_extrapolation"]

# Beyond this multiple of the observed span the paper's own extrapolations collapse (its 600 → 1600).
_FAR = 2.0
# Beyond it float64 does not tell one step from the next.
_MAX_STEP = 1 << 53
_OUTPUT_DTYPES = ("float32", "bfloat16", "float16", "float64")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class ExtrapolationPlan:
    """What an extrapolation would do.

    Attributes
    ----------
    rows : tuple of int
        Rows of the source that are read.
    coefficients : numpy.ndarray
        ``(len(rows),) float64``.
    rules : dict of str to str
        What happens to each tensor: ``extrapolate``, ``keep`` (a pattern names it), or ``copy`` (integers,
        booleans, buffers).
    exact : bool
        Whether the target is a single observed checkpoint, which is then copied bit for bit.
    warnings : tuple of str
    """

    source: TrajectoryStore | RunTrajectories
    target: int
    out_dir: Path
    method: str
    window: tuple[int, ...]
    rows: tuple[int, ...]
    coefficients: np.ndarray[Any, Any]
    rules: Mapping[str, str]
    keep: tuple[str, ...]
    min_r2: float | None
    dtype: TensorDType | None
    exact: bool
    template: Template = field(repr=False)
    files: tuple[WeightFilePlan, ...] = field(repr=False)
    memory: MemoryPlan
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Step of each row."""
        return tuple(self.source.steps[row] for row in self.rows)

    @property
    def bytes_in(self) -> int:
        """Raw bytes of the trajectories to read."""
        return sum(t.num_bytes for t in self.source.tensors.values()) * len(self.rows)

    @property
    def bytes_out(self) -> int:
        """Bytes of weights to write."""
        return sum(file.num_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "source": self.source.location,
            "step": self.target,
            "out": str(self.out_dir),
            "method": self.method,
            "steps": list(self.steps),
            "coefficients": self.coefficients.tolist(),
            "keep": list(self.keep),
            "min_r2": self.min_r2,
            "tensors": {
                rule: sum(r == rule for r in self.rules.values()) for rule in ("extrapolate", "keep", "copy")
            },
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "workers": self.memory.num_workers,
            "peak_memory_bytes": self.memory.peak_bytes,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ExtrapolationResult:
    """An extrapolated checkpoint.

    Attributes
    ----------
    out_dir : Path
    num_params : int
        Parameters that were extrapolated.
    num_lost : int
        Of these, parameters whose predicted change the rounding to the output dtype took away.
    num_gated : int
        Of these, parameters that kept their last value because their R² is under the gate; those that never
        changed, and have no R², are not counted.
    record : dict
        Content of ``ckptlin.json``.
    """

    out_dir: Path
    num_params: int
    num_lost: int
    num_gated: int
    record: Mapping[str, Any] = field(repr=False)
    warnings: tuple[str, ...]
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            **{name: value for name, value in self.record.items() if name != "tensors"},
            "out": str(self.out_dir),
            "warnings": list(self.warnings),
            "elapsed_s": self.elapsed_s,
        }


def plan_extrapolation(
    source: TrajectoryStore | RunTrajectories,
    target: int,
    out_dir: str | os.PathLike[str],
    *,
    method: str = "ols",
    steps: str | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    keep: Sequence[str] | None = None,
    min_r2: float | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
) -> ExtrapolationPlan:
    """Work out what `extrapolate` would do; same parameters and errors."""
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    if min_r2 is not None and not 0.0 <= min_r2 <= 1.0:
        raise InputError(f"--min-r2 must lie between 0 and 1, not {min_r2}")
    if abs(target) > _MAX_STEP:
        raise InputError(f"--step {target} is no step; give one between -{_MAX_STEP} and {_MAX_STEP}")
    if dtype is not None and dtype not in _OUTPUT_DTYPES:
        raise InputError(f"--dtype {dtype!r} is not known; choose one of {', '.join(_OUTPUT_DTYPES)}")
    out = Path(out_dir)
    check_output(Path(os.path.realpath(out)), out, overwrite=overwrite)
    spec = parse_method(method)
    window = select_rows(source.steps, steps)
    if from_step is not None or to_step is not None:
        if spec.name != "two-point":
            raise InputError(f"--from and --to belong to the method two-point, not to {spec.name}; use --steps")
        window = _between(source, window, from_step, to_step)
    observed = np.array([source.steps[row] for row in window], np.float64)
    coefficients = spec.coefficients(observed, target)
    output_dtype = None if dtype is None else from_zarr(dtype)
    patterns = tuple(spec.keep if keep is None else keep)
    if keep:
        select(dict.fromkeys([*source.tensors, *source.tied]), keep, option="--keep")
    used = [i for i, a in enumerate(coefficients) if a != 0.0]
    exact = len(used) == 1 and not patterns and output_dtype is None and min_r2 is None
    rows: tuple[int, ...]
    if exact:
        rows, chosen = (window[used[0]],), np.ones(1)
    else:
        # All rows for the gate; else those with a coefficient, and the last, which kept tensors come from.
        needed = range(len(window)) if min_r2 is not None else sorted({*used, len(window) - 1})
        rows, chosen = tuple(window[i] for i in needed), coefficients[list(needed)]
    rules = _rules(source, patterns, exact)
    template = template_of(source, rows[-1])
    return ExtrapolationPlan(
        source=source,
        target=target,
        out_dir=out,
        method=str(spec),
        window=tuple(source.steps[row] for row in window),
        rows=rows,
        coefficients=chosen,
        rules=rules,
        keep=patterns,
        min_r2=min_r2,
        dtype=output_dtype,
        exact=exact,
        template=template,
        files=_plan_files(template, output_dtype, max_shard_bytes),
        memory=MemoryPlan.within(
            default_budget() if memory_bytes is None else memory_bytes,
            "extrapolate",
            _widest_block(source, len(rows), min_r2 is not None),
            num_workers or available_workers(),
        ),
        warnings=_warnings(observed, target),
    )


def extrapolate(
    source: TrajectoryStore | RunTrajectories,
    target: int,
    out_dir: str | os.PathLike[str],
    *,
    method: str = "ols",
    steps: str | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    keep: Sequence[str] | None = None,
    min_r2: float | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    scheduler: str | None = None,
    processes: bool = False,
    progress: Progress = NO_PROGRESS,
) -> ExtrapolationResult:
    """Write the checkpoint that a method predicts for a step.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    target : int
        Step to predict; between or before the observed ones too.
    out_dir : path-like
        Directory of the checkpoint.  It appears whole or not at all.
    method : str
        As `ckptlin.methods.parse_method` reads it: ``NAME`` or ``NAME:KEY=VALUE,...``.
    steps : str, optional
        Window of steps that the method sees.
    from_step, to_step : int, optional
        The two checkpoints of ``two-point``; default the first and the last of the window.
    keep : sequence of str, optional
        Patterns of tensors that keep their last value; default the method's own (``norm`` for
        ``two-point``), an empty sequence for none.
    min_r2 : float, optional
        Parameters whose R² over the window is lower keep their last value.
    dtype : str, optional
        Of the floating tensors written; default each tensor's own.
    max_shard_bytes : int, optional
        Largest size of a file; default the division of the last checkpoint.
    overwrite : bool
        Replace a checkpoint that is there.
    memory_bytes, num_workers : int, optional
    scheduler : str, optional
    processes : bool
        Where blocks are predicted, see `ckptlin.execution.open_executor`; ``out_dir`` has to lie on a file
        system that all workers share.

    Raises
    ------
    InputError, SelectionError
        If an option makes no sense.
    OutputExistsError
        If ``out_dir`` is there.
    NonFiniteError
        If a weight is NaN or infinite, or a prediction does not fit into the output dtype.
    DiskFullError, MemoryBudgetError, CorruptChunkError
    """
    started = time.perf_counter()
    plan = plan_extrapolation(
        source,
        target,
        out_dir,
        method=method,
        steps=steps,
        from_step=from_step,
        to_step=to_step,
        keep=keep,
        min_r2=min_r2,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
    )
    for warning in plan.warnings:
        progress.note(warning)
    with CheckpointWriter(plan.out_dir, plan.files, overwrite=overwrite) as writer:
        predictor = BlockPredictor(
            source=source,
            target=target,
            rows=plan.rows,
            coefficients=plan.coefficients,
            min_r2=plan.min_r2,
            dtype=plan.dtype,
            write=writer.write,
        )
        num_lost = num_gated = 0
        blocks = [block for name in source.tensors for block in source.blocks(name)]
        with (
            open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes) as executor,
            progress.phase("extrapolate", plan.bytes_in) as advance,
        ):

            def collect(batch: Sequence[PredictionItem], losses: Sequence[Losses]) -> None:
                nonlocal num_lost, num_gated
                for item, (lost, gated) in zip(batch, losses, strict=True):
                    num_lost += lost
                    num_gated += gated
                    block = item.block
                    if executor.is_remote:
                        writer.note_written(block.tensor, block.num_params)
                    advance(block.num_params * source.tensors[block.tensor].dtype.itemsize * len(plan.rows))

            def item_of(block: Block) -> PredictionItem:
                is_extrapolated = plan.rules[block.tensor] == "extrapolate"
                return PredictionItem(block, is_extrapolated, writer.place(block.tensor, block.start))

            items = [[item_of(block) for block in batch] for batch in batches(blocks)]
            executor.run(predictor, items, collect, ahead=predictor.prefetch)
        num_params = sum(
            source.tensors[name].num_params for name, rule in plan.rules.items() if rule == "extrapolate"
        )
        record = provenance(
            source=source,
            plan=plan.to_dict(),
            window=plan.window,
            rules=plan.rules,
            dtype=dtype,
            num_params=num_params,
            num_lost=num_lost,
            num_gated=num_gated,
        )
        for name, data in _sidecars(plan).items():
            writer.add_file(name, data)
        writer.add_file(PROVENANCE_NAME, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
        writer.add_file("README.md", model_card(record, plan.warnings).encode())
        writer.commit()
    return ExtrapolationResult(
        out_dir=plan.out_dir,
        num_params=num_params,
        num_lost=num_lost,
        num_gated=num_gated,
        record=record,
        warnings=plan.warnings,
        elapsed_s=time.perf_counter() - started,
    )


def _between(
    source: TrajectoryStore | RunTrajectories, window: tuple[int, ...], first: int | None, last: int | None
) -> tuple[int, ...]:
    steps = [source.steps[row] for row in window]
    for option, step in (("--from", first), ("--to", last)):
        if step is not None and step not in steps:
            there = describe_steps(steps)
            raise SelectionError(f"{option} {step} does not exist; {source.location} has {there}")
    first = steps[0] if first is None else first
    last = steps[-1] if last is None else last
    if first >= last:
        raise InputError(f"--from {first} must lie before --to {last}")
    return tuple(row for row, step in zip(window, steps, strict=True) if first <= step <= last)


def _rules(source: TrajectoryStore | RunTrajectories, patterns: Sequence[str], exact: bool) -> dict[str, str]:
    rules = {}
    for name, spec in source.tensors.items():
        # A tied name goes with the tensor that it is tied to.
        names = {name, source.tied.get(name, name)}
        names |= {alias for alias, tensor in source.tied.items() if tensor in names}
        if exact or not spec.dtype.is_float or is_buffer(name):
            rules[name] = "copy"
        elif any(matches(n, pattern) for n in names for pattern in patterns):
            rules[name] = "keep"
        elif not is_fitted(spec.dtype):
            raise InputError(
                f"tensor `{name}` is {spec.dtype.zarr}, whose values mean little without their scales; "
                "dequantise the checkpoints first, or keep such tensors with --keep"
            )
        else:
            rules[name] = "extrapolate"
    return rules


def _widest_block(source: TrajectoryStore | RunTrajectories, num_rows: int, gated: bool) -> int:
    """Bytes that the largest block takes while it is predicted."""
    widest = 1
    size = source.record.chunk_steps * 2 if isinstance(source, TrajectoryStore) else min(num_rows, 16)
    for spec in source.tensors.values():
        num_params = max((block.num_params for block in source.blocks(spec.name)), default=0)
        state = 7 * 8 + 7 * spec.dtype.itemsize if gated else 0
        per_param = (size + 4) * spec.dtype.itemsize + 8 + 16 + state
        widest = max(widest, num_params * per_param)
    return widest


def _plan_files(
    template: Template, dtype: TensorDType | None, max_shard_bytes: int | None
) -> tuple[WeightFilePlan, ...]:
    files = template.files()
    headers = dict(template.headers)
    if len(files) == 1 and _SINGLE not in files:
        # A lone file of another name is a checkpoint to us, but not to from_pretrained.
        (name,) = files
        files, headers = {_SINGLE: files[name]}, {_SINGLE: headers[name]}
    specs = [
        replace(spec, dtype=dtype) if dtype is not None and is_fitted(spec.dtype) else spec
        for tensors in files.values()
        for spec in tensors.values()
    ]
    file_of = {tensor: name for name, tensors in files.items() for tensor in tensors}
    return plan_files(specs, file_of, source_headers=headers, max_shard_bytes=max_shard_bytes)


def _sidecars(plan: ExtrapolationPlan) -> dict[str, bytes]:
    sidecars = {name: data for name, data in plan.template.sidecars.items() if name != _INDEX}
    if plan.dtype is not None and "config.json" in sidecars:
        config = json.loads(sidecars["config.json"])
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = plan.dtype.zarr
        sidecars["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return sidecars


def _warnings(observed: np.ndarray[Any, Any], target: int) -> tuple[str, ...]:
    first, last = observed[0], observed[-1]
    span = last - first
    reach = max(target - first, last - target) / span
    if reach <= _FAR:
        return ()
    return (
        f"step {target} reaches {reach:.1f} times the observed span ({first:.0f} to {last:.0f}); beyond "
        f"{_FAR:.0f} times, straight lines have been seen to fail (arXiv 2601.04537: 600 to 1600 fell back "
        "to .30 on AIME24), so evaluate this checkpoint before you use it",
    )
