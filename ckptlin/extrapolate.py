"""Predict a checkpoint at a step that was never trained, and write it block by block."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ckptlin.block_extrapolate import BlockPredictor, Losses, PredictionItem
from ckptlin.block_rank_one import RankOnePredictor, tensor_batches
from ckptlin.checkpoints import CheckpointWriter, RunTrajectories
from ckptlin.checkpoints.run import PROVENANCE_NAME
from ckptlin.checkpoints.writer import check_free_space
from ckptlin.errors import NonFiniteError
from ckptlin.execution import Executor, batches, open_executor
from ckptlin.extrapolate_plan import AUTO, ExtrapolationPlan, plan_extrapolation
from ckptlin.gram import gram
from ckptlin.gram_matrices import GramMatrices
from ckptlin.intervals import check_path
from ckptlin.model_card import model_card, provenance
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block

__all__ = ["ExtrapolationPlan", "ExtrapolationResult", "extrapolate", "plan_extrapolation"]

_KEEP = "let the tensor keep its last value with --keep"
_INDEX = "model.safetensors.index.json"


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


def extrapolate(
    source: TrajectoryStore | RunTrajectories,
    target: int,
    out_dir: str | os.PathLike[str],
    *,
    method: str = AUTO,
    steps: str | None = None,
    segment: int | str | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    keep: Sequence[str] | None = None,
    min_r2: float | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    grams: GramMatrices | None = None,
    intervals: str | os.PathLike[str] | None = None,
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
        As `ckptlin.methods.parse_method` reads it, ``NAME`` or ``NAME:KEY=VALUE,...``, or ``rank1-matrix``
        (`ckptlin.methods.rank1_matrix.Rank1Matrix`), or ``auto``: what `ckptlin.backtest.choose` finds best by
        the window's own past.  Where that cannot tell methods apart, with two checkpoints or for a target that
        is not after the last, ``auto`` is ``ols``.
    steps : str, optional
        Window of steps that the method sees; default all.  Where it crosses a jump, the plan warns of it.
    segment : int or str, optional
        One of the source's segments instead: its number, from 1 on, or ``last``.
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
    grams : GramMatrices, optional
        Of at least the window's steps.  Default: those that the store keeps; where there are none and the
        method or ``intervals`` depend on them, they are computed first, and not kept.
    intervals : path-like, optional
        A file (``.json`` or ``.csv``) for prediction-interval widths of every tensor, see
        `ckptlin.intervals.prediction_intervals`; it is replaced if it is there.
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
    if intervals is not None:
        check_path(Path(intervals))
    make_plan = partial(
        plan_extrapolation,
        source,
        target,
        out_dir,
        method=method,
        steps=steps,
        segment=segment,
        from_step=from_step,
        to_step=to_step,
        keep=keep,
        min_r2=min_r2,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        with_intervals=intervals is not None,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
    )
    plan = make_plan(grams=grams)
    is_computed = plan.gram_plan is not None
    if is_computed:
        # Found out before every weight is read, and not after.
        check_free_space(plan.out_dir, sum(file.num_bytes for file in plan.files))
        try:
            computed = gram(
                source,
                steps=",".join(map(str, plan.window)),
                exclude=plan.excluded,
                memory_bytes=memory_bytes,
                num_workers=num_workers,
                scheduler=scheduler,
                processes=processes,
                keep=False,
                progress=progress,
            )
        except NonFiniteError as error:
            # What a Gram pass leaves out, an extrapolation keeps.
            advice = (
                str(error)
                .replace("the tensor with --exclude", _KEEP)
                .replace("leave it out with --exclude", _KEEP)
            )
            raise NonFiniteError(advice) from error
        plan = make_plan(grams=computed)
    for warning in plan.warnings:
        progress.note(warning)
    widths = None if intervals is None else plan.intervals()
    with CheckpointWriter(plan.out_dir, plan.files, overwrite=overwrite) as writer:
        with open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes) as executor:
            losses = _predict(plan, writer, executor, progress)
        num_params = sum(
            source.tensors[name].num_params for name, rule in plan.rules.items() if rule == "extrapolate"
        )
        record = provenance(plan=plan, dtype=dtype, num_params=num_params, losses=losses, widths=widths)
        for name, data in _sidecars(plan).items():
            writer.add_file(name, data)
        writer.add_file(PROVENANCE_NAME, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
        writer.add_file("README.md", model_card(record, plan.warnings).encode())
        writer.commit()
    if intervals is not None and widths is not None:
        widths.save(Path(intervals))
    if is_computed and isinstance(source, TrajectoryStore):
        progress.note(
            f"Gram matrices of these steps were computed first, because {source.location} keeps none of them; "
            f"`ckptlin gram {source.location}` would keep them"
        )
    return ExtrapolationResult(
        out_dir=plan.out_dir,
        num_params=num_params,
        num_lost=losses.num_lost,
        num_gated=losses.num_gated,
        record=record,
        warnings=plan.warnings,
        elapsed_s=time.perf_counter() - started,
    )


def _predict(
    plan: ExtrapolationPlan, writer: CheckpointWriter, executor: Executor, progress: Progress
) -> Losses:
    """Predict and write every block; return the losses of all together."""
    source = plan.source
    assert plan.coefficients is not None  # noqa: S101 (what they depend on has been computed)
    blockwise = BlockPredictor(
        source=source,
        target=plan.target,
        coefficients=plan.coefficients,
        min_r2=plan.min_r2,
        dtype=plan.dtype,
        write=writer.write,
    )
    blocks = [block for name in source.tensors for block in source.blocks(name)]
    predictor: BlockPredictor | RankOnePredictor = blockwise
    grouped = batches(blocks)
    if plan.rank_one is not None:
        predictor = RankOnePredictor(source, plan.rank_one, blockwise)
        grouped = tensor_batches(blocks)
    totals = Losses(0, 0)

    def item_of(block: Block) -> PredictionItem:
        is_extrapolated = plan.rules[block.tensor] == "extrapolate"
        return PredictionItem(block, is_extrapolated, writer.place(block.tensor, block.start))

    with progress.phase("extrapolate", plan.bytes_in) as advance:

        def collect(batch: Sequence[PredictionItem], losses: Sequence[Losses]) -> None:
            nonlocal totals
            for item, of_block in zip(batch, losses, strict=True):
                totals = Losses(*map(sum, zip(totals, of_block, strict=True)))
                block = item.block
                if executor.is_remote:
                    writer.note_written(block.tensor, block.num_params)
                itemsize = source.tensors[block.tensor].dtype.itemsize
                advance(block.num_params * itemsize * plan.num_reads(block.tensor))

        items = [[item_of(block) for block in batch] for batch in grouped]
        executor.run(predictor, items, collect, ahead=predictor.prefetch)
    return totals


def _sidecars(plan: ExtrapolationPlan) -> dict[str, bytes]:
    sidecars = {name: data for name, data in plan.template.sidecars.items() if name != _INDEX}
    if plan.dtype is not None and "config.json" in sidecars:
        config = json.loads(sidecars["config.json"])
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = plan.dtype.zarr
        sidecars["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return sidecars
