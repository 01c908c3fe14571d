"""Least squares of every parameter of a block on the training step.

Legend: s step, x = (s − s̄)/sd(s), w weight, p pivot (the weight in the first row), d = w − p, T number of
rows.  With centred x

    cov = Σxd − Σx·Σd/T     var = Σd² − (Σd)²/T     R² = cov² / (Σx² · var)

which is Pearson r².  Sums run in float32 inside a group of at most 16 rows and in float64 across groups;
after the first group the pivot moves to that group's mean, so that the cancellation in ``var`` is bounded by
1 + T/16 instead of T.  Blocks whose squares leave float32's range are done again in float64 throughout.

Work goes tile by tile: a tile's rows and sums stay in the L1 cache, so a block is read from memory once.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.widen import TAGS, float32_bits, float32_of_bits, widen
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

__all__ = [
    "COUNT",
    "GROUP_ROWS",
    "NUM_BINS",
    "SUM",
    "Abscissa",
    "BlockFit",
    "BlockRegression",
]

GROUP_ROWS = 16
NUM_BINS = 1000
_TILE = 1024
# float32 squares below this lose digits to subnormals, above it to infinity.
_SAFE_SQUARES = (1e-26, 1e32)
assert PAPER_MIN_DISTINCT == 4  # noqa: S101 (the distinct counter below holds three values)


class _Count(NamedTuple):
    """Indices into `BlockFit.counts`.

    ``unchanged``: same bits in every row.  ``undefined``: bits changed but the value did not (±0).
    """

    params: int = 0
    unchanged: int = 1
    undefined: int = 2
    moved_above_7: int = 3
    moved_above_9: int = 4
    paper: int = 5
    paper_above_7: int = 6
    paper_above_9: int = 7


COUNT = _Count()


class _Sum(NamedTuple):
    """Indices into `BlockFit.sums`: float64 totals over the block.

    ``r2_moved``, ``r2_paper``: of R² over each population.  ``update``: (last − first)².  ``first``:
    first².  ``variation``: squared deviations from the mean.  ``residual``: squared residuals;
    ``rounding``: what rounding to the element type alone adds to them, T·ulp²/12 for each that moved.
    """

    r2_moved: int = 0
    r2_paper: int = 1
    update: int = 2
    first: int = 3
    variation: int = 4
    residual: int = 5
    rounding: int = 6


SUM = _Sum()


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
        s = np.asarray(steps, dtype=np.float64)
        mean = float(s.mean())
        scale = float(s.std())
        return cls(((s - mean) / scale).astype(np.float32), mean, scale)

    @property
    def terms(self) -> tuple[int, float, float, float, float]:
        """T, Σx, Σ(x − x̄)², s̄ and sd(s), of the float32 x that the sums are taken with."""
        x = self.x.astype(np.float64)
        return x.size, float(x.sum()), float(((x - x.mean()) ** 2).sum()), self.mean, self.scale


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


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _ulp(value: Any, epsilon: float, smallest: float) -> Any:
    """One unit in the last place of a float32-representable value (float64 result)."""
    exponent = (float32_bits(np.float32(value)) >> np.uint32(23)) & np.uint32(0xFF)
    if exponent < 1:
        exponent = np.uint32(1)
    return max(float32_of_bits(np.uint32(exponent << np.uint32(23))) * epsilon, smallest)


# Between groups a parameter's state is a column of two arrays: ``state``, ``(7, n) float64``, with pivot, Σd,
# Σxd, Σd², lowest, highest and last value; and ``words``, ``(6, n)`` of the bits dtype, with the first bits,
# three distinct values, their number, and the bits that ever changed.  ``group``, ``(6, tile)``, holds the
# sums of one group; its dtype, float32 or float64, is what they are taken in.  ``element`` is what an element
# type is to a kernel: (tag, sign bit, unit in the last place of 1, smallest spacing).
#
# Rows are sliced as ``array[t, lo:hi]``: numba types that as contiguous, and only then does LLVM vectorise
# (measured: 8 to 10 times the speed of slicing two dimensions first).


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _begin(bits: Any, lo: int, hi: int, element: Any, state: Any, words: Any, at: int) -> None:
    """Start tile ``lo:hi`` from the first row, its state at column ``at``."""
    n = hi - lo
    word = bits.dtype.type
    tag, sign, _, _ = element
    row = bits[0, lo:hi]
    pivot = state[0, at : at + n]
    for k in range(1, 4):
        state[k, at : at + n] = 0.0
    state[4, at : at + n] = np.inf
    state[5, at : at + n] = -np.inf
    for i in range(n):
        pivot[i] = widen(row[i], tag)
    words[0, at : at + n] = row
    for k in range(1, 4):
        value = words[k, at : at + n]
        for i in range(n):
            value[i] = word(0) if row[i] == sign else row[i]
    words[4, at : at + n] = word(1)
    words[5, at : at + n] = word(0)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count_distinct(bits: Any, lo: int, hi: int, sign: Any, words: Any, at: int) -> None:
    n = hi - lo
    word = bits.dtype.type
    first, moved = words[0, at : at + n], words[5, at : at + n]
    v0, v1, v2 = words[1, at : at + n], words[2, at : at + n], words[3, at : at + n]
    distinct = words[4, at : at + n]
    for t in range(bits.shape[0]):
        row = bits[t, lo:hi]
        for i in range(n):
            raw = row[i]
            moved[i] = word(moved[i] | word(raw ^ first[i]))
            b = word(0) if raw == sign else raw
            k = distinct[i]
            new = (b != v0[i]) & (b != v1[i]) & (b != v2[i])
            v1[i] = b if new & (k == word(1)) else v1[i]
            v2[i] = b if new & (k == word(2)) else v2[i]
            distinct[i] = word(k + word(1)) if new & (k <= word(3)) else k


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _add_rows(bits: Any, lo: int, hi: int, tag: Any, x: Any, group: Any) -> None:
    """Add rows to Σd, Σxd, Σd², lowest, highest of a tile, two rows a pass."""
    n = hi - lo
    real = group.dtype.type
    pivot = group[0, :n]
    sum_d, sum_xd, sum_dd = group[1, :n], group[2, :n], group[3, :n]
    low, high = group[4, :n], group[5, :n]
    num_rows = bits.shape[0]
    for t in range(0, num_rows - 1, 2):
        row, row_after = bits[t, lo:hi], bits[t + 1, lo:hi]
        xa, xb = real(x[t]), real(x[t + 1])
        for i in range(n):
            wa, wb = real(widen(row[i], tag)), real(widen(row_after[i], tag))
            da, db = wa - pivot[i], wb - pivot[i]
            sum_d[i] += da + db
            sum_xd[i] += xa * da + xb * db
            sum_dd[i] += da * da + db * db
            smaller = wa if wa < wb else wb
            larger = wb if wa < wb else wa
            low[i] = smaller if smaller < low[i] else low[i]
            high[i] = larger if larger > high[i] else high[i]
    if num_rows % 2:
        row = bits[num_rows - 1, lo:hi]
        xa = real(x[num_rows - 1])
        for i in range(n):
            wa = real(widen(row[i], tag))
            da = wa - pivot[i]
            sum_d[i] += da
            sum_xd[i] += xa * da
            sum_dd[i] += da * da
            low[i] = wa if wa < low[i] else low[i]
            high[i] = wa if wa > high[i] else high[i]


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _accumulate(
    bits: Any,
    lo: int,
    hi: int,
    element: Any,
    x: Any,
    state: Any,
    words: Any,
    at: int,
    group: Any,
    repivot: bool,
) -> None:
    """Add a group of at most 16 rows of one tile; then pivot to its mean if asked."""
    n = hi - lo
    num_rows = bits.shape[0]
    real = group.dtype.type
    tag, sign, _, _ = element
    _count_distinct(bits, lo, hi, sign, words, at)
    for i in range(n):
        group[0, i] = real(state[0, at + i])
    group[1:4, :n] = real(0.0)
    group[4, :n] = real(np.inf)
    group[5, :n] = real(-np.inf)
    _add_rows(bits, lo, hi, tag, x, group)
    for k in range(1, 4):
        total, part = state[k, at : at + n], group[k, :n]
        for i in range(n):
            total[i] += part[i]
    low, high = state[4, at : at + n], state[5, at : at + n]
    part_low, part_high = group[4, :n], group[5, :n]
    last, last_row = state[6, at : at + n], bits[num_rows - 1, lo:hi]
    for i in range(n):
        low[i] = min(low[i], part_low[i])
        high[i] = max(high[i], part_high[i])
        last[i] = widen(last_row[i], tag)
    if repivot:
        total_x = 0.0
        for t in range(num_rows):
            total_x += x[t]
        pivot, sum_d = state[0, at : at + n], state[1, at : at + n]
        sum_xd, sum_dd = state[2, at : at + n], state[3, at : at + n]
        for i in range(n):
            moved_pivot = np.float64(real(pivot[i] + sum_d[i] / num_rows))
            shift = moved_pivot - pivot[i]
            sum_dd[i] += shift * (num_rows * shift - 2.0 * sum_d[i])
            sum_xd[i] -= shift * total_x
            sum_d[i] -= num_rows * shift
            pivot[i] = moved_pivot


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _solve(abscissa: Any, state: Any, words: Any, at: int, n: int, out: Any) -> None:
    """Write R² (NaN where undefined), slope, variation and intercept of a tile to the rows of ``out``."""
    num_steps, total_x, total_xx, mean, scale = abscissa
    pivot, sum_d = state[0, at : at + n], state[1, at : at + n]
    sum_xd, sum_dd = state[2, at : at + n], state[3, at : at + n]
    moved = words[5, at : at + n]
    r2, slope, variation, intercept = out[0, :n], out[1, :n], out[2, :n], out[3, :n]
    for i in range(n):
        d_bar = sum_d[i] / num_steps
        cov = sum_xd[i] - total_x * d_bar
        var = sum_dd[i] - sum_d[i] * d_bar
        per_x = cov / total_xx
        ratio = per_x * (cov / var)
        defined = (moved[i] != 0) & (var > 0.0)
        r2[i] = (ratio if ratio < 1.0 else 1.0) if defined else np.nan
        slope[i] = per_x / scale if defined else 0.0
        variation[i] = var if defined else 0.0
        intercept[i] = pivot[i] + d_bar - slope[i] * mean


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _total(
    num_steps: int, element: Any, state: Any, words: Any, at: int, n: int, out: Any, counts: Any, sums: Any
) -> int:
    """Add a tile to the counts and sums; return how many parameters need float64 sums."""
    tag, _, epsilon, smallest = element
    first, moved, distinct = words[0, at : at + n], words[5, at : at + n], words[4, at : at + n]
    sum_dd, last = state[3, at : at + n], state[6, at : at + n]
    low, high = state[4, at : at + n], state[5, at : at + n]
    r2, variation = out[0, :n], out[2, :n]
    unchanged = undefined = above_7 = above_9 = paper = paper_above_7 = paper_above_9 = unsafe = 0
    sum_r2 = sum_r2_paper = update = squares = sum_variation = residual = rounding = 0.0
    for i in range(n):
        value = np.float64(widen(first[i], tag))
        change = last[i] - value
        squares += value * value
        update += change * change
        still = moved[i] == 0
        unchanged += still
        defined = r2[i] == r2[i]
        undefined += (not still) & (not defined)
        unsafe += (not still) & (not ((sum_dd[i] > _SAFE_SQUARES[0]) & (sum_dd[i] < _SAFE_SQUARES[1])))
        r = r2[i] if defined else 0.0
        sum_r2 += r
        above_7 += r > 0.7
        above_9 += r > 0.9
        sum_variation += variation[i]
        residual += variation[i] * (1.0 - r)
        ulp = _ulp(value, epsilon, smallest)
        rounding += ulp * ulp if defined else 0.0
        in_paper = defined & (high[i] - low[i] > PAPER_MIN_RANGE) & (distinct[i] > 3)
        out[4, i] = in_paper
        r = r if in_paper else 0.0
        paper += in_paper
        sum_r2_paper += r
        paper_above_7 += r > 0.7
        paper_above_9 += r > 0.9
    counts[COUNT.params] += n
    counts[COUNT.unchanged] += unchanged
    counts[COUNT.undefined] += undefined
    counts[COUNT.moved_above_7] += above_7
    counts[COUNT.moved_above_9] += above_9
    counts[COUNT.paper] += paper
    counts[COUNT.paper_above_7] += paper_above_7
    counts[COUNT.paper_above_9] += paper_above_9
    sums[SUM.r2_moved] += sum_r2
    sums[SUM.r2_paper] += sum_r2_paper
    sums[SUM.update] += update
    sums[SUM.first] += squares
    sums[SUM.variation] += sum_variation
    sums[SUM.residual] += residual
    sums[SUM.rounding] += rounding * num_steps / 12.0
    return unsafe


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _finish(
    abscissa: Any,
    element: Any,
    state: Any,
    words: Any,
    at: int,
    lo: int,
    hi: int,
    out: Any,
    counts: Any,
    sums: Any,
    histogram: Any,
    r2_map: Any,
    slope_map: Any,
    intercept_map: Any,
) -> int:
    """Turn a tile's sums into figures; return how many parameters need float64 sums."""
    n = hi - lo
    _solve(abscissa, state, words, at, n, out)
    unsafe: int = _total(abscissa[0], element, state, words, at, n, out, counts, sums)
    r2, in_paper = out[0, :n], out[4, :n]
    for i in range(n):
        if r2[i] == r2[i]:
            position = min(int(r2[i] * NUM_BINS), NUM_BINS - 1)
            histogram[0, position] += 1
            histogram[1, position] += in_paper[i] != 0.0
    if r2_map.size:
        r2_map[lo:hi] = out[0, :n]
    if slope_map.size:
        slope_map[lo:hi] = out[1, :n]
    if intercept_map.size:
        intercept_map[lo:hi] = out[3, :n]
    return unsafe


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _begin_all(bits: Any, element: Any, state: Any, words: Any) -> None:
    for lo in range(0, bits.shape[1], _TILE):
        _begin(bits, lo, min(lo + _TILE, bits.shape[1]), element, state, words, lo)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulate_all(bits: Any, element: Any, x: Any, state: Any, words: Any, group: Any, repivot: bool) -> None:
    for lo in range(0, bits.shape[1], _TILE):
        hi = min(lo + _TILE, bits.shape[1])
        _accumulate(bits, lo, hi, element, x, state, words, lo, group, repivot)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _finish_all(
    abscissa: Any,
    element: Any,
    state: Any,
    words: Any,
    counts: Any,
    sums: Any,
    histogram: Any,
    r2: Any,
    slope: Any,
    intercept: Any,
) -> int:
    out = np.empty((5, _TILE), np.float64)
    unsafe = 0
    for lo in range(0, words.shape[1], _TILE):
        hi = min(lo + _TILE, words.shape[1])
        unsafe += _finish(
            abscissa, element, state, words, lo, lo, hi, out, counts, sums, histogram, r2, slope, intercept
        )
    return unsafe


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _whole(
    bits: Any,
    element: Any,
    x: Any,
    abscissa: Any,
    group: Any,
    counts: Any,
    sums: Any,
    histogram: Any,
    r2: Any,
    slope: Any,
    intercept: Any,
) -> int:
    """All three at once for a block of one group: its sums never leave the cache."""
    state = np.empty((7, _TILE), np.float64)
    words = np.empty((6, _TILE), bits.dtype)
    out = np.empty((5, _TILE), np.float64)
    unsafe = 0
    for lo in range(0, bits.shape[1], _TILE):
        hi = min(lo + _TILE, bits.shape[1])
        _begin(bits, lo, hi, element, state, words, 0)
        _accumulate(bits, lo, hi, element, x, state, words, 0, group, False)
        unsafe += _finish(
            abscissa, element, state, words, 0, lo, hi, out, counts, sums, histogram, r2, slope, intercept
        )
    return unsafe


def _element(dtype: TensorDType) -> tuple[Any, Any, float, float]:
    word = dtype.bits.type
    # The spacing of the smallest numbers; float64's own lies beyond what float32 arithmetic can tell.
    smallest = {"bfloat16": 2.0**-133, "float16": 2.0**-24, "float32": 2.0**-149, "float64": 0.0}[dtype.zarr]
    return TAGS[dtype.zarr], word(1 << (8 * dtype.itemsize - 1)), 2.0 ** -(dtype.mantissa_bits or 0), smallest


class BlockRegression:
    """The regression of one block, fed with groups of rows in the order of the steps.

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
    Memory: 80 to 100 bytes a parameter between groups; nothing when `fit` takes all rows at once.
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
        real = np.float64 if careful or dtype.zarr == "float64" else np.float32
        self._group = np.empty((6, _TILE), real)
        self._element = _element(dtype)
        self._dtype = dtype
        self._num_params = num_params
        self._maps = frozenset(maps)
        self._rows_seen = 0
        self._state: np.ndarray[Any, Any] | None = None
        self._words: np.ndarray[Any, Any] | None = None

    def add(self, bits: np.ndarray[Any, Any]) -> None:
        """Add the next rows, ``(num_rows, num_params)`` of the bits dtype."""
        if self._state is None:
            self._state = np.empty((7, self._num_params), np.float64)
            self._words = np.empty((6, self._num_params), self._dtype.bits)
            _begin_all(bits, self._element, self._state, self._words)
        for lo in range(0, bits.shape[0], GROUP_ROWS):
            group = bits[lo : lo + GROUP_ROWS]
            x = self._abscissa.x[self._rows_seen : self._rows_seen + group.shape[0]]
            first = self._rows_seen == 0
            _accumulate_all(group, self._element, x, self._state, self._words, self._group, first)
            self._rows_seen += group.shape[0]

    def finish(self) -> tuple[BlockFit, bool]:
        """Return the figures, and whether they can be trusted (else run again with ``careful``)."""
        result, outputs = self._outputs()
        unsafe = _finish_all(self._abscissa.terms, self._element, self._state, self._words, *outputs)
        return result, self._trusted(result, unsafe)

    def fit(self, bits: np.ndarray[Any, Any]) -> tuple[BlockFit, bool]:
        """Do all at once for ``(num_steps, num_params)`` bits; same result as `add` and `finish`."""
        if bits.shape[0] > GROUP_ROWS:
            self.add(bits)
            return self.finish()
        result, outputs = self._outputs()
        abscissa = self._abscissa
        unsafe = _whole(bits, self._element, abscissa.x, abscissa.terms, self._group, *outputs)
        return result, self._trusted(result, unsafe)

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
        return BlockFit(counts, sums, histogram, **kept), (counts, sums, histogram, *arrays.values())

    @staticmethod
    def _trusted(result: BlockFit, unsafe: int) -> bool:
        return unsafe == 0 and bool(np.isfinite(result.sums).all())
