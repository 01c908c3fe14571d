"""The part of an extrapolation that runs wherever blocks are read: predict, round, write."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.checkpoints.writer import write_fully
from ckptlin.coefficients import Coefficients
from ckptlin.dtypes import TensorDType, is_fitted
from ckptlin.errors import NonFiniteError
from ckptlin.finite import require_finite
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.weighted_sum import BlockSum, RoundedBlock, round_once
from ckptlin.selection import row_groups
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block, TensorSpec, thread_buffer

__all__ = ["BlockPredictor", "Losses", "Move", "PredictionItem"]


@dataclass(frozen=True, slots=True)
class PredictionItem:
    """A block to predict, or else to copy from the last row; and the file and the byte where it goes."""

    block: Block
    is_extrapolated: bool
    place: tuple[Path, int]


class Losses(NamedTuple):
    """What of a block went another way than its prediction.

    Attributes
    ----------
    num_lost : int
        Parameters that rounding took back.
    num_gated : int
        Parameters that the gate held.
    num_unconverged : int
        Matrices whose singular component had not converged; counted with a tensor's first block.
    """

    num_lost: int
    num_gated: int
    num_unconverged: int = 0


class Move(Protocol):
    """Something that is added to the weighted sum of a block."""

    def add_to(self, total: np.ndarray[Any, Any], block: Block) -> None:
        """Add it to the block's parameters, ``(block.num_params,) float64``."""
        ...


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a tensor's rows are read and weighted.

    Attributes
    ----------
    rows : tuple of int
        The last is the one that parameters are kept from.
    groups : list of list of int
        The rows as they are read together.
    reference : int
        The first row with a coefficient, which the sum starts from.
    weights : dict of int to float
        What the sum takes each row with: 0 for the reference.
    """

    rows: tuple[int, ...]
    groups: list[list[int]]
    reference: int
    weights: dict[int, float]


class BlockPredictor:
    """Predicts batches of blocks and writes them: a small picklable task.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    target : int
        Step, for messages.
    coefficients : Coefficients
        Over rows of the source; the last is the one that parameters are kept from.
    min_r2 : float or None
        Gate, see `ckptlin.extrapolate.extrapolate`; R² is over all rows of the coefficients.
    dtype : TensorDType or None
        Of the floating tensors written; None keeps each tensor's own.
    write : callable
        Writes values of a tensor from an element on; in another process, files are written by their places.
    """

    def __init__(
        self,
        *,
        source: TrajectoryStore | RunTrajectories,
        target: int,
        coefficients: Coefficients,
        min_r2: float | None,
        dtype: TensorDType | None,
        write: Callable[[str, int, np.ndarray[Any, Any]], None],
    ) -> None:
        self._source = source
        self._target = target
        self._coefficients = coefficients
        self._last = coefficients.rows[-1:]
        self._min_r2 = min_r2
        self._dtype = dtype
        self._write: Callable[[str, int, np.ndarray[Any, Any]], None] | None = write
        self._readings: dict[str, _Reading] = {}
        self._abscissa = None
        if min_r2 is not None:
            self._abscissa = Abscissa.of([source.steps[row] for row in coefficients.rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_write": None}

    def __call__(self, batch: Sequence[PredictionItem]) -> list[Losses]:
        """Predict and write the blocks of a batch.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite, or a prediction does not fit into the output dtype.
        """
        return [self.predict(item) for item in batch]

    def prefetch(self, batch: Sequence[PredictionItem]) -> None:
        """Tell the system that a batch will soon be read."""
        for item in batch:
            rows = self._reading(item.block.tensor).rows if item.is_extrapolated else self._last
            self._source.prefetch(item.block, rows)

    def predict(self, item: PredictionItem, move: Move | None = None) -> Losses:
        """Predict and write one block; a move is added to the weighted sum before it is rounded."""
        block = item.block
        spec = self._source.tensors[block.tensor]
        losses = Losses(0, 0)
        if item.is_extrapolated:
            values, losses = self._extrapolate(block, spec, move)
        else:
            bits = self._source.read_block(block, self._last, thread_buffer())[0]
            values = self._convert(bits.view(spec.dtype.numpy), spec)
        values = np.ascontiguousarray(values)
        if self._write is not None:
            self._write(block.tensor, block.start, values)
        else:
            _write_at(*item.place, values)
        return losses

    def _extrapolate(
        self, block: Block, spec: TensorSpec, move: Move | None
    ) -> tuple[np.ndarray[Any, Any], Losses]:
        result, gated = self._sum(block, spec, move, careful=False)
        if not result.is_finite:
            self._require_finite(block)
        if result.num_overflowed:
            raise _beyond_range(
                f"the prediction of tensor `{spec.name}` for step {self._target}",
                result.num_overflowed,
                self._dtype or spec.dtype,
                "choose a nearer step, or a wider --dtype",
            )
        return result.values, Losses(result.num_lost, gated)

    def _convert(self, values: np.ndarray[Any, Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
        """Bring a tensor that stays as it is to the output dtype; what is not finite stays so."""
        dtype = self._dtype
        if dtype is None or dtype == spec.dtype or not is_fitted(spec.dtype):
            return values
        with np.errstate(invalid="ignore"):  # signalling NaN
            wide = values.astype(np.float64)
        converted = round_once(wide, dtype)
        num_overflowed = int((np.isfinite(wide) & ~np.isfinite(converted)).sum())
        if num_overflowed:
            raise _beyond_range(f"tensor `{spec.name}`", num_overflowed, dtype, "choose a wider --dtype")
        return converted

    def _require_finite(self, block: Block) -> None:
        way_out = "let the tensor keep its last value with --keep"
        require_finite(self._source, block, self._reading(block.tensor).rows, way_out=way_out)

    def _reading(self, tensor: str) -> _Reading:
        # Most tensors of a run share one; threads that make the same one twice do no harm.
        key = "" if self._coefficients.is_shared else tensor
        if key not in self._readings:
            vector = self._coefficients.of(tensor)
            weights = dict(zip(self._coefficients.rows, vector.tolist(), strict=True))
            reference = next(row for row, weight in weights.items() if weight != 0.0)
            is_gated = self._min_r2 is not None
            rows = self._coefficients.rows if is_gated else self._coefficients.rows_of(tensor)
            groups = row_groups(self._source, rows)
            self._readings[key] = _Reading(rows, groups, reference, {**weights, reference: 0.0})
        return self._readings[key]

    def _sum(
        self, block: Block, spec: TensorSpec, move: Move | None, *, careful: bool
    ) -> tuple[RoundedBlock, int]:
        reading = self._reading(block.tensor)
        regression = None
        if self._abscissa is not None:
            regression = BlockRegression(spec.dtype, self._abscissa, block.num_params, ("r2",), careful=careful)
        reference = None
        total: BlockSum | None = None
        for group in reading.groups:
            bits = self._source.read_block(block, group, thread_buffer())
            if total is None:
                if reading.reference in group:
                    reference = bits[group.index(reading.reference)].copy()
                else:
                    reference = self._source.read_block(block, [reading.reference])[0]
                total = BlockSum(spec.dtype, reference)
            total.add(bits, np.array([reading.weights[row] for row in group]))
            if regression is not None and len(reading.groups) > 1:
                regression.add(bits)
        assert total is not None  # noqa: S101 (there is at least one group)
        if move is not None:
            shift = np.full(block.num_params, -0.0)  # to which adding nothing changes nothing
            move.add_to(shift, block)
            total.shift(shift)
        last = bits[-1]
        keep, num_gated = None, 0
        if regression is not None and self._min_r2 is not None:
            fit, trusted = regression.finish() if len(reading.groups) > 1 else regression.fit(bits)
            if not trusted and not careful:
                # A NaN would pass for a parameter without R², which the gate holds.
                self._require_finite(block)
                return self._sum(block, spec, move, careful=True)
            assert fit.r2 is not None  # noqa: S101 (it was asked for)
            keep = ~(fit.r2 >= self._min_r2)
            num_gated = int((fit.r2 < self._min_r2).sum())
        return total.finish(last, keep, self._dtype or spec.dtype), num_gated


def _write_at(path: Path, offset: int, values: np.ndarray[Any, Any]) -> None:
    """Write values into a file that is there, and wait until they are durable."""
    fd = os.open(path, os.O_WRONLY)
    try:
        write_fully(fd, offset, values.view(np.uint8).data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _beyond_range(what: str, count: int, dtype: TensorDType, way_out: str) -> NonFiniteError:
    values = "value" if count == 1 else "values"
    return NonFiniteError(f"{what} has {count} {values} beyond the range of {dtype.zarr}; {way_out}")
