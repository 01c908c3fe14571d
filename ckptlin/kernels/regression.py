"""Least squares of every parameter of a block on the training step.

Legend: s step, x = (s − s̄)/sd(s), w weight, p pivot, d = w − p, T number of rows.  With centred x

    cov = Σxd − Σx·Σd/T     var = Σd² − (Σd)²/T     R² = cov² / (Σx² · var)

which is Pearson r².  Sums run in float32 inside a group of 16 rows and in float64 across groups.  The pivot is
the median of the first three weights, and after the 1st, 2nd, 4th, 8th, … group the mean so far: what cancels
in ``var`` is then at most some ten times what is left, however many rows there are and wherever outliers lie.
Blocks whose squares leave float32's range are done again in float64 throughout.

Groups of 16 rows, and inside them passes of four, are counted from the first row of all: however the rows come
in, the same sums are taken in the same order, to the last bit.

Work goes tile by tile: a tile's rows and sums stay in the L1 cache, so a block is read from memory once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.packed_regression import fit_packed, lay_out
from ckptlin.kernels.regression_tile import (
    COUNT,
    GROUP_ROWS,
    NUM_BINS,
    SUM,
    TILE,
    accumulate_rows,
    add_tally,
    begin,
    close_group,
    finish,
    fit_tile,
    move_pivot,
    tile_scratch,
    tile_state,
)
from ckptlin.kernels.step_delta import order_constants
from ckptlin.kernels.widen import TAGS

__all__ = [
    "COUNT",
    "GROUP_ROWS",
    "NUM_BINS",
    "SUM",
    "Abscissa",
    "BlockFit",
    "BlockRegression",
]

_PASS_ROWS = 4
# Squares below the first lose digits to subnormals, above the second to infinity.
_SAFE_SQUARES = {np.float32: (1e-26, 1e32), np.float64: (1e-280, 1e300)}


@dataclass(frozen=True)
class Abscissa:
    """The steps of a regression, centred and scaled.

    Attributes
    ----------
    x : numpy.ndarray
        ``(num_steps,) float32``: (s − s̄)/sd(s), sd with divisor T.
    mean, scale : float
        s̄ and sd(s) in steps.
    """

    x: np.ndarray[Any, Any]
    mean: float
    scale: float

    @classmethod
    def of(cls, steps: Any) -> "Abscissa":
        """Build from at least two distinct steps."""
        steps = np.asarray(steps)
        s = (steps - steps[0]).astype(np.float64)  # integers: exact however large the steps are
        scale = float(s.std())
        return cls(((s - s.mean()) / scale).astype(np.float32), float(steps[0] + s.mean()), scale)

    @cached_property
    def terms(self) -> tuple[int, float, float, float, float]:
        """T, Σx, Σ(x − x̄)², s̄ and sd(s), of the float32 x that the sums are taken with."""
        x = self.x.astype(np.float64)
        return x.size, float(x.sum()), float(((x - x.mean()) ** 2).sum()), self.mean, self.scale

    @cached_property
    def sums(self) -> np.ndarray[Any, Any]:
        """Σx of the rows before each group, ``(num_groups,) float64``."""
        starts = range(0, self.x.size, GROUP_ROWS)
        return np.array([self.x[:n].sum(dtype=np.float64) for n in starts])


@dataclass(frozen=True)
class BlockFit:
    """What the regression of one block yields.

    Attributes
    ----------
    counts : numpy.ndarray
        ``(len(COUNT),) int64``, by `COUNT`.
    sums : numpy.ndarray
        ``(len(SUM),) float64``, by `SUM`.
    histogram : numpy.ndarray
        ``(2, NUM_BINS) int64``: R² of all that moved, and of the paper's population.
    r2, slope, intercept : numpy.ndarray or None
        ``(num_params,)`` maps, where asked for; slope per step.  R² is NaN for an unchanged parameter.
    """

    counts: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    histogram: np.ndarray[Any, Any]
    r2: np.ndarray[Any, Any] | None
    slope: np.ndarray[Any, Any] | None
    intercept: np.ndarray[Any, Any] | None


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulate_all(bits: Any, element: Any, x: Any, rows_so_far: Any, state: Any) -> None:
    """Add the next rows, all of one group, to a block's state.

    ``rows_so_far``: (their number, Σx, whether they end a group, whether to move the pivot).
    """
    num_rows, total_x, closes, moves = rows_so_far
    rows = (0, bits.shape[0])
    for lo in range(0, bits.shape[1], TILE):
        hi = min(lo + TILE, bits.shape[1])
        if num_rows == 0:
            begin(bits, rows, lo, hi, element, state, lo)
        if closes:
            close_group(num_rows == GROUP_ROWS, state, lo, hi - lo)
        if moves:
            move_pivot(num_rows, total_x, state, lo, hi - lo)
        accumulate_rows(bits, rows, lo, hi, element, x, state, lo)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _finish_all(
    line: Any, element: Any, limits: Any, state: Any, figures: Any, histogram: Any, maps: Any
) -> int:
    """Turn a block's state into figures; return how many parameters cannot be trusted."""
    scratch = tile_scratch(state[1])
    unsafe = 0
    for lo in range(0, state[2].shape[1], TILE):
        n = min(TILE, state[2].shape[1] - lo)
        unsafe += finish(line, element, limits, state, lo, n, scratch, figures, maps, lo)
    add_tally(scratch[2], histogram)
    return unsafe


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _fit_all(
    bits: Any,
    x: Any,
    x_sums: Any,
    line: Any,
    element: Any,
    limits: Any,
    group: Any,
    figures: Any,
    histogram: Any,
    maps: Any,
) -> int:
    """Do all at once for a block whose rows are all there; ``group`` is a tile wide."""
    state, scratch = tile_state(bits, group), tile_scratch(group)
    rows = (0, bits.shape[0])
    unsafe = 0
    for lo in range(0, bits.shape[1], TILE):
        hi = min(lo + TILE, bits.shape[1])
        unsafe += fit_tile(
            bits, rows, lo, hi, x, x_sums, line, element, limits, state, scratch, figures, maps, lo
        )
    add_tally(scratch[2], histogram)
    return unsafe


def _element(dtype: TensorDType) -> tuple[Any, Any, float, float]:
    word = dtype.bits.type
    # The spacing of the smallest numbers; float64's own lies beyond what float32 arithmetic can tell.
    smallest = {"bfloat16": 2.0**-133, "float16": 2.0**-24, "float32": 2.0**-149, "float64": 0.0}[dtype.zarr]
    return TAGS[dtype.zarr], word(1 << (8 * dtype.itemsize - 1)), 2.0 ** -(dtype.mantissa_bits or 0), smallest


class BlockRegression:
    """The regression of one block, fed with groups of rows in the order of the steps.

    How the rows are grouped makes no difference to the result, not in the last bit.

    Parameters
    ----------
    dtype : TensorDType
        bfloat16, float16, float32 or float64.
    abscissa : Abscissa
    num_params : int
    maps : collection of str
        Which of ``r2``, ``slope``, ``intercept`` to keep.
    careful : bool
        Sum in float64 throughout: half the speed, for weights whose squares leave float32's range.

    Notes
    -----
    Memory between groups: `state_bytes` for each parameter; nothing when `fit` takes all rows at once.

    float64 weights whose movement is below 1e-140 count as undefined: their squares are beyond float64.
    """

    def __init__(
        self,
        dtype: TensorDType,
        abscissa: Abscissa,
        num_params: int,
        maps: Collection[str] = (),
        *,
        careful: bool = False,
    ) -> None:
        self._abscissa = abscissa
        self._real = np.float64 if careful or dtype.zarr == "float64" else np.float32
        low, high = _SAFE_SQUARES[self._real]
        self._limits = (-1.0, high, low) if self._real is np.float64 else (low, high, 0.0)
        self._element = _element(dtype)
        self._dtype = dtype
        self._num_params = num_params
        self._maps = frozenset(maps)
        self._rows_summed = 0
        self._num_held = 0
        self._held = np.empty((0, 0), dtype.bits)
        self._state: tuple[Any, ...] = ()

    @staticmethod
    def state_bytes(dtype: TensorDType) -> int:
        """Bytes for each parameter that are kept between groups of rows."""
        # The sums of `_accumulate_all`, in float64 at worst, and the rows that wait for a pass.
        return 9 * 8 + (7 + _PASS_ROWS) * dtype.itemsize

    def add(self, bits: np.ndarray[Any, Any]) -> None:
        """Add the next rows, ``(num_rows, num_params)`` of the bits dtype, C-contiguous."""
        if self._num_held:
            taken = bits[: _PASS_ROWS - self._num_held]
            self._hold(taken)
            bits = bits[len(taken) :]
            if self._num_held < _PASS_ROWS:
                return
            self._accumulate(self._held)
            self._num_held = 0
        num_rest = len(bits) % _PASS_ROWS
        self._accumulate(bits[: len(bits) - num_rest])
        self._hold(bits[len(bits) - num_rest :])

    def finish(self) -> tuple[BlockFit, bool]:
        """Return the figures, and whether they can be trusted (else run again with ``careful``)."""
        self._accumulate(self._held[: self._num_held])
        result, outputs = self._outputs()
        unsafe = _finish_all(self._abscissa.terms, self._element, self._limits, self._state, *outputs)
        return result, self._trusted(result, unsafe)

    def fit(self, bits: np.ndarray[Any, Any]) -> tuple[BlockFit, bool]:
        """Do all at once for ``(num_steps, num_params)`` bits; same result as `add` and `finish`."""
        result, outputs = self._outputs()
        unsafe = _fit_all(bits, *self._arguments, *outputs)
        return result, self._trusted(result, unsafe)

    def fit_packed(
        self,
        chunks: Sequence[np.ndarray[Any, Any]],
        shape: tuple[int, int],
        kind: int,
        rows: tuple[int, int],
        columns: np.ndarray[Any, Any],
    ) -> tuple[BlockFit, bool, np.ndarray[Any, Any]]:
        """Do the same with chunks that are still packed, and sample some columns.

        Parameters
        ----------
        chunks : sequence of numpy.ndarray
            uint8, what `bit_pack.pack` made of the block's chunks, one for each row of chunks.
        shape : tuple of int
            Of each chunk: steps and parameters, padding included.
        kind : int
            Of `step_delta`: how the bits are ordered.
        rows : tuple of int
            First row, and the one after the last, counted through all chunks.
        columns : numpy.ndarray
            ``(num_sampled,) int64``, ascending.

        Returns
        -------
        fit : BlockFit
        trusted : bool
        sample : numpy.ndarray
            ``(num_rows, num_sampled)`` of the bits dtype.

        Raises
        ------
        ValueError
            If a chunk holds something else than its words.
        """
        data, sections = lay_out(chunks, shape, self._dtype.bits)
        sample = np.empty((rows[1] - rows[0], columns.size), self._dtype.bits)
        order = (kind, *order_constants(sample))
        result, outputs = self._outputs()
        unsafe = fit_packed(
            data, sections, shape, order, rows, self._num_params, columns, sample, *self._arguments, *outputs
        )
        if unsafe < 0:
            raise ValueError("the bit planes hold other numbers than were expected")
        return result, self._trusted(result, unsafe), sample

    @property
    def _arguments(self) -> tuple[Any, ...]:
        """What kernels that fit all rows at once take of the regression, from ``x`` to ``group``."""
        abscissa = self._abscissa
        group = np.empty((6, TILE), self._real)
        return abscissa.x, abscissa.sums, abscissa.terms, self._element, self._limits, group

    def _hold(self, bits: np.ndarray[Any, Any]) -> None:
        """Keep rows until there are enough for a pass."""
        if not len(bits):
            return
        if not self._held.size:
            self._held = np.empty((_PASS_ROWS, self._num_params), self._dtype.bits)
        self._held[self._num_held : self._num_held + len(bits)] = bits
        self._num_held += len(bits)

    def _accumulate(self, bits: np.ndarray[Any, Any]) -> None:
        """Sum rows, a multiple of `_PASS_ROWS` of them unless they are the last."""
        if not self._state:
            self._state = (
                np.empty((3, self._num_params), np.float64),
                np.empty((6, self._num_params), self._real),
                np.empty((7, self._num_params), self._dtype.bits),
            )
        while len(bits):
            n = self._rows_summed
            num_groups, num_open = divmod(n, GROUP_ROWS)
            closes = n > 0 and num_open == 0
            moves = closes and num_groups.bit_count() == 1
            so_far = (n, float(self._abscissa.sums[num_groups]), closes, moves)
            part = bits[: GROUP_ROWS - num_open]
            x = self._abscissa.x[n : n + len(part)]
            _accumulate_all(part, self._element, x, so_far, self._state)
            self._rows_summed += len(part)
            bits = bits[len(part) :]

    def _outputs(self) -> tuple[BlockFit, tuple[Any, ...]]:
        value_type = np.float64 if self._dtype.zarr == "float64" else np.float32
        arrays = {
            name: np.empty(self._num_params if name in self._maps else 0, value_type)
            for name in ("r2", "slope", "intercept")
        }
        counts = np.zeros(len(COUNT), np.int64)
        sums = np.zeros(len(SUM), np.float64)
        histogram = np.zeros((2, NUM_BINS), np.int64)
        kept = {name: array if name in self._maps else None for name, array in arrays.items()}
        return BlockFit(counts, sums, histogram, **kept), ((counts, sums), histogram, tuple(arrays.values()))

    @staticmethod
    def _trusted(result: BlockFit, unsafe: int) -> bool:
        return unsafe == 0 and bool(np.isfinite(result.sums).all())
