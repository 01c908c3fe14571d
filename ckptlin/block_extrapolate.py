"""The part of an extrapolation that runs wherever blocks are read: predict, round, write."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.checkpoints.writer import write_fully
from ckptlin.dtypes import TensorDType, is_fitted
from ckptlin.errors import NonFiniteError
from ckptlin.finite import require_finite
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.weighted_sum import BlockSum, RoundedBlock, round_once
from ckptlin.selection import row_groups
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block, TensorSpec, thread_buffer

__all__ = ["BlockPredictor", "Losses", "PredictionItem"]


@dataclass(frozen=True, slots=True)
class PredictionItem:
    """A block to predict, or else to copy from the last row; and the file and the byte where it goes."""

    block: Block
    is_extrapolated: bool
    place: tuple[Path, int]


class Losses(NamedTuple):
    """How many parameters of a block rounding took back, and how many the gate held."""

    num_lost: int
    num_gated: int


class BlockPredictor:
    """Predicts batches of blocks and writes them: a small picklable task.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    target : int
        Step, for messages.
    rows : sequence of int
        Rows of the source; the last is the one that parameters are kept from.
    coefficients : numpy.ndarray
        ``(len(rows),) float64``.
    min_r2 : float or None
        Gate, see `ckptlin.extrapolate.extrapolate`.
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
        rows: Sequence[int],
        coefficients: np.ndarray[Any, Any],
        min_r2: float | None,
        dtype: TensorDType | None,
        write: Callable[[str, int, np.ndarray[Any, Any]], None],
    ) -> None:
        self._source = source
        self._target = target
        self._rows = tuple(rows)
        self._min_r2 = min_r2
        self._dtype = dtype
        self._write: Callable[[str, int, np.ndarray[Any, Any]], None] | None = write
        self._coefficient = dict(zip(rows, coefficients.tolist(), strict=True))
        self._groups = row_groups(source, rows)
        self._reference = next(row for row in rows if self._coefficient[row] != 0.0)
        self._abscissa = Abscissa.of([source.steps[row] for row in rows]) if min_r2 is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_write": None}

    def __call__(self, batch: Sequence[PredictionItem]) -> list[Losses]:
        """Predict and write the blocks of a batch.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite, or a prediction does not fit into the output dtype.
        """
        return [self._predict(item) for item in batch]

    def prefetch(self, batch: Sequence[PredictionItem]) -> None:
        """Tell the system that a batch will soon be read."""
        for item in batch:
            self._source.prefetch(item.block, self._rows if item.is_extrapolated else self._rows[-1:])

    def _predict(self, item: PredictionItem) -> Losses:
        block = item.block
        spec = self._source.tensors[block.tensor]
        losses = Losses(0, 0)
        if item.is_extrapolated:
            values, losses = self._extrapolate(block, spec)
        else:
            bits = self._source.read_block(block, self._rows[-1:], thread_buffer())[0]
            values = self._convert(bits.view(spec.dtype.numpy), spec)
        values = np.ascontiguousarray(values)
        if self._write is not None:
            self._write(block.tensor, block.start, values)
        else:
            _write_at(*item.place, values)
        return losses

    def _extrapolate(self, block: Block, spec: TensorSpec) -> tuple[np.ndarray[Any, Any], Losses]:
        result, gated = self._sum(block, spec, careful=False)
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
        require_finite(self._source, block, self._rows, way_out=way_out)

    def _sum(self, block: Block, spec: TensorSpec, *, careful: bool) -> tuple[RoundedBlock, int]:
        regression = None
        if self._abscissa is not None:
            regression = BlockRegression(spec.dtype, self._abscissa, block.num_params, ("r2",), careful=careful)
        reference = None
        total: BlockSum | None = None
        for group in self._groups:
            bits = self._source.read_block(block, group, thread_buffer())
            if total is None:
                if self._reference in group:
                    reference = bits[group.index(self._reference)].copy()
                else:
                    reference = self._source.read_block(block, [self._reference])[0]
                total = BlockSum(spec.dtype, reference)
            total.add(bits, np.array([self._weight(row) for row in group]))
            if regression is not None:
                regression.add(bits)
        assert total is not None  # noqa: S101 (there is at least one group)
        last = bits[-1]
        keep, num_gated = None, 0
        if regression is not None and self._min_r2 is not None:
            fit, trusted = regression.finish()
            if not trusted and not careful:
                # A NaN would pass for a parameter without R², which the gate holds.
                self._require_finite(block)
                return self._sum(block, spec, careful=True)
            assert fit.r2 is not None  # noqa: S101 (it was asked for)
            keep = ~(fit.r2 >= self._min_r2)
            num_gated = int((fit.r2 < self._min_r2).sum())
        return total.finish(last, keep, self._dtype or spec.dtype), num_gated

    def _weight(self, row: int) -> float:
        """Return the coefficient that the sum takes a row with: 0 for the row that it starts from."""
        return 0.0 if row == self._reference else self._coefficient[row]


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
