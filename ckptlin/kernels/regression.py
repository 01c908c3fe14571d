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

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.widen import TAGS, float64_bits, float64_of_bits, widen
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

__all__ = [
    "COUNT",
    "GROUP_ROWS",
    "NUM_BINS",
    "SUM",
    "Abscissa",
    "BlockFit",
    "BlockRegression",
    "ulp",
]

GROUP_ROWS = 16
NUM_BINS = 1000
_TILE = 1024
_PASS_ROWS = 4
_COLUMNS = NUM_BINS + 1
# Squares below the first lose digits to subnormals, above the second to infinity.
_SAFE_SQUARES = {np.float32: (1e-26, 1e32), np.float64: (1e-280, 1e300)}
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
        steps = np.asarray(steps)
        s = (steps - steps[0]).astype(np.float64)  # integers: exact however large the steps are
        scale = float(s.std())
        return cls(((s - s.mean()) / scale).astype(np.float32), float(steps[0] + s.mean()), scale)

    @cached_property
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
def ulp(value: float, epsilon: float, smallest: float) -> Any:
    """One unit in the last place of a value of the element type."""
    power = float64_of_bits(float64_bits(value) & np.uint64(0x7FF0_0000_0000_0000))
    return max(power * epsilon, smallest)


# Between calls a parameter's state is a column of three arrays.  ``totals``, ``(3, n) float64``: Σd, Σxd and
# Σd² of all finished groups.  ``group``, ``(6, n)``: the pivot, the same sums of the group under way, the
# lowest and the highest value; its dtype, float32 or float64, is what sums are taken in.  ``words``, ``(7, n)``
# of the bits dtype: the first and the last bits; of the distinct values the first, the latest and the one
# before that; what tells that a fourth came (not 0); the bits that changed.
#
# ``element`` is what an element type is to a kernel: (tag, sign bit, unit in the last place of 1, smallest
# spacing).  ``limits``: the two between which Σd² can be trusted, and the least variation that has an R².
#
# Rows are sliced as ``array[t, lo:hi]``: numba types that as contiguous, and only then does LLVM vectorise
# (measured: 8 to 10 times the speed of slicing two dimensions first).


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _begin(bits: Any, lo: int, hi: int, element: Any, totals: Any, group: Any, words: Any, at: int) -> None:
    """Start tile ``lo:hi`` from the first rows, its state at column ``at``.

    The pivot is the median of the first three weights: a first checkpoint that lies far from all others (the
    base model) would double the error.
    """
    n = hi - lo
    word = bits.dtype.type
    real = group.dtype.type
    tag, sign, _, _ = element
    num_rows = bits.shape[0]
    row, second, third = bits[0, lo:hi], bits[min(1, num_rows - 1), lo:hi], bits[min(2, num_rows - 1), lo:hi]
    pivot = group[0, at : at + n]
    for i in range(n):
        a, b, c = real(widen(row[i], tag)), real(widen(second[i], tag)), real(widen(third[i], tag))
        smaller, larger = (a, b) if a < b else (b, a)
        middle = larger if larger < c else c
        pivot[i] = smaller if smaller > middle else middle
    for k in range(3):
        totals[k, at : at + n] = 0.0
        group[k + 1, at : at + n] = real(0.0)
    group[4, at : at + n] = real(np.inf)
    group[5, at : at + n] = real(-np.inf)
    words[0, at : at + n] = row
    base, latest, before = words[2, at : at + n], words[3, at : at + n], words[4, at : at + n]
    for i in range(n):
        base[i] = word(row[i] & word(word(0) - word(row[i] != sign)))
        latest[i] = before[i] = base[i]
    words[5, at : at + n] = word(0)
    words[6, at : at + n] = word(0)


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _see(word: Any, raw: Any, sign: Any, base: Any, latest: Any, before: Any, fourth: Any) -> Any:
    """Look at one more value: return the latest distinct value, the one before, and whether a fourth came.

    A value that is none of those kept pushes them down; it is a fourth (or seen before, after a fourth came) if
    the place that it pushes out of was taken.  Masks instead of branches, or LLVM does not vectorise.
    """
    value = word(raw & word(word(0) - word(raw != sign)))
    fresh = word(word(0) - word((value != base) & (value != latest) & (value != before)))
    fourth = word(fourth | word(fresh & word(before ^ base)))
    before = word(word(latest & fresh) | word(before & word(~fresh)))
    latest = word(word(value & fresh) | word(latest & word(~fresh)))
    return latest, before, fourth


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _count_distinct(bits: Any, lo: int, hi: int, sign: Any, words: Any, at: int) -> None:
    """Follow distinct values and changed bits through the rows of a tile, four rows a pass."""
    n = hi - lo
    word = bits.dtype.type
    first, base, moved = words[0, at : at + n], words[2, at : at + n], words[6, at : at + n]
    latest, before, fourth = words[3, at : at + n], words[4, at : at + n], words[5, at : at + n]
    num_rows = bits.shape[0]
    for t in range(0, num_rows - 3, 4):
        row_a, row_b, row_c, row_d = bits[t, lo:hi], bits[t + 1, lo:hi], bits[t + 2, lo:hi], bits[t + 3, lo:hi]
        for i in range(n):
            a, b, c, d, start = row_a[i], row_b[i], row_c[i], row_d[i], first[i]
            changed = word(word(word(a ^ start) | word(b ^ start)) | word(word(c ^ start) | word(d ^ start)))
            moved[i] = word(moved[i] | changed)
            one, two, more = latest[i], before[i], fourth[i]
            one, two, more = _see(word, a, sign, base[i], one, two, more)
            one, two, more = _see(word, b, sign, base[i], one, two, more)
            one, two, more = _see(word, c, sign, base[i], one, two, more)
            one, two, more = _see(word, d, sign, base[i], one, two, more)
            latest[i], before[i], fourth[i] = one, two, more
    for t in range(num_rows - num_rows % 4, num_rows):
        row = bits[t, lo:hi]
        for i in range(n):
            moved[i] = word(moved[i] | word(row[i] ^ first[i]))
            one, two, more = _see(word, row[i], sign, base[i], latest[i], before[i], fourth[i])
            latest[i], before[i], fourth[i] = one, two, more
    words[1, at : at + n] = bits[num_rows - 1, lo:hi]


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _add_rows(bits: Any, lo: int, hi: int, tag: Any, x: Any, group: Any, at: int) -> None:
    """Add rows to Σd, Σxd, Σd², lowest, highest of a tile, four rows a pass."""
    n = hi - lo
    real = group.dtype.type
    pivot = group[0, at : at + n]
    sum_d, sum_xd, sum_dd = group[1, at : at + n], group[2, at : at + n], group[3, at : at + n]
    low, high = group[4, at : at + n], group[5, at : at + n]
    num_rows = bits.shape[0]
    for t in range(0, num_rows - 3, 4):
        row_a, row_b, row_c, row_d = bits[t, lo:hi], bits[t + 1, lo:hi], bits[t + 2, lo:hi], bits[t + 3, lo:hi]
        xa, xb, xc, xd = real(x[t]), real(x[t + 1]), real(x[t + 2]), real(x[t + 3])
        for i in range(n):
            wa, wb = real(widen(row_a[i], tag)), real(widen(row_b[i], tag))
            wc, wd = real(widen(row_c[i], tag)), real(widen(row_d[i], tag))
            da, db, dc, dd = wa - pivot[i], wb - pivot[i], wc - pivot[i], wd - pivot[i]
            sum_d[i] += (da + db) + (dc + dd)
            sum_xd[i] += (xa * da + xb * db) + (xc * dc + xd * dd)
            sum_dd[i] += (da * da + db * db) + (dc * dc + dd * dd)
            smaller, larger = (wa, wb) if wa < wb else (wb, wa)
            smaller_after, larger_after = (wc, wd) if wc < wd else (wd, wc)
            smaller = smaller if smaller < smaller_after else smaller_after
            larger = larger if larger > larger_after else larger_after
            low[i] = smaller if smaller < low[i] else low[i]
            high[i] = larger if larger > high[i] else high[i]
    for t in range(num_rows - num_rows % 4, num_rows):
        row = bits[t, lo:hi]
        xa = real(x[t])
        for i in range(n):
            wa = real(widen(row[i], tag))
            da = wa - pivot[i]
            sum_d[i] += da
            sum_xd[i] += xa * da
            sum_dd[i] += da * da
            low[i] = wa if wa < low[i] else low[i]
            high[i] = wa if wa > high[i] else high[i]


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _close_group(totals: Any, group: Any, at: int, n: int) -> None:
    """Add the sums of a finished group to the totals."""
    real = group.dtype.type
    for k in range(3):
        total, part = totals[k, at : at + n], group[k + 1, at : at + n]
        for i in range(n):
            total[i] += part[i]
        group[k + 1, at : at + n] = real(0.0)


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _move_pivot(num_rows: int, total_x: float, totals: Any, group: Any, at: int, n: int) -> None:
    """Move the pivot to the mean of the ``num_rows`` rows so far, and the totals with it."""
    real = group.dtype.type
    pivot, sum_d = group[0, at : at + n], totals[0, at : at + n]
    sum_xd, sum_dd = totals[1, at : at + n], totals[2, at : at + n]
    for i in range(n):
        moved_pivot = real(pivot[i] + sum_d[i] / num_rows)
        shift = np.float64(moved_pivot) - np.float64(pivot[i])
        sum_dd[i] += shift * (num_rows * shift - 2.0 * sum_d[i])
        sum_xd[i] -= shift * total_x
        sum_d[i] -= num_rows * shift
        pivot[i] = moved_pivot


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _solve(abscissa: Any, limits: Any, totals: Any, group: Any, words: Any, at: int, n: int, out: Any) -> None:
    """Write R² (NaN where undefined), slope, variation and intercept of a tile to the rows of ``out``."""
    num_steps, total_x, total_xx, mean, scale = abscissa
    _, _, least = limits
    pivot, sum_d = group[0, at : at + n], totals[0, at : at + n]
    sum_xd, sum_dd = totals[1, at : at + n], totals[2, at : at + n]
    moved = words[6, at : at + n]
    r2, slope, variation, intercept = out[0, :n], out[1, :n], out[2, :n], out[3, :n]
    per_step, per_xx, per_scale = 1.0 / num_steps, 1.0 / total_xx, 1.0 / scale  # divisions take half the time
    for i in range(n):
        d_bar = sum_d[i] * per_step
        cov = sum_xd[i] - total_x * d_bar
        var = sum_dd[i] - sum_d[i] * d_bar
        per_x = cov * per_xx
        ratio = per_x * (cov / var)
        defined = (moved[i] != 0) & (var > least)
        r2[i] = (ratio if ratio < 1.0 else 1.0) if defined else np.nan
        slope[i] = per_x * per_scale if defined else 0.0
        variation[i] = var if defined else 0.0
        intercept[i] = pivot[i] + d_bar - slope[i] * mean


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _total(
    num_steps: int,
    element: Any,
    limits: Any,
    totals: Any,
    group: Any,
    words: Any,
    at: int,
    n: int,
    out: Any,
    counts: Any,
    sums: Any,
) -> int:
    """Add a tile to the counts and sums; return how many parameters cannot be trusted."""
    tag, _, epsilon, smallest = element
    safe_low, safe_high, _ = limits
    first, last, moved = words[0, at : at + n], words[1, at : at + n], words[6, at : at + n]
    fourth, sum_dd = words[5, at : at + n], totals[2, at : at + n]
    low, high = group[4, at : at + n], group[5, at : at + n]
    r2, variation = out[0, :n], out[2, :n]
    unchanged = undefined = above_7 = above_9 = paper = paper_above_7 = paper_above_9 = unsafe = 0
    sum_r2 = sum_r2_paper = update = squares = sum_variation = residual = rounding = 0.0
    for i in range(n):
        value = np.float64(widen(first[i], tag))
        change = np.float64(widen(last[i], tag)) - value
        squares += value * value
        update += change * change
        still = moved[i] == 0
        unchanged += still
        defined = r2[i] == r2[i]
        undefined += (not still) & (not defined)
        spread = np.float64(high[i]) - np.float64(low[i])
        # Squares that are 0 although the values differ have underflowed; comparisons with NaN are false.
        safe = (sum_dd[i] < safe_high) & ((sum_dd[i] > safe_low) | ((sum_dd[i] == 0.0) & (spread == 0.0)))
        unsafe += (not still) & (not safe)
        r = r2[i] if defined else 0.0
        sum_r2 += r
        above_7 += r > 0.7
        above_9 += r > 0.9
        sum_variation += variation[i]
        residual += variation[i] * (1.0 - r)
        unit = ulp(value, epsilon, smallest)
        rounding += unit * unit if defined else 0.0
        in_paper = defined & (spread > PAPER_MIN_RANGE) & (fourth[i] != 0)
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


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _bin(out: Any, n: int, positions: Any, tally: Any) -> None:
    """Count the R² of a tile in ``tally``, ``(2, 2 (NUM_BINS + 1)) int32``.

    Columns: the bins of R² outside the paper's population, one for those without R², and the same inside it.
    Its two rows take turns: a count waits for the one before it where both fall into the same bin.
    """
    r2, in_paper = out[0, :n], out[4, :n]
    for i in range(n):
        defined = r2[i] == r2[i]
        scaled = r2[i] * NUM_BINS if defined else 0.0
        position = np.int32(scaled if scaled < NUM_BINS - 1 else NUM_BINS - 1)
        positions[i] = (position if defined else np.int32(NUM_BINS)) + np.int32(in_paper[i]) * np.int32(
            _COLUMNS
        )
    for i in range(0, n - 1, 2):
        tally[0, positions[i]] += np.int32(1)
        tally[1, positions[i + 1]] += np.int32(1)
    if n % 2:
        tally[0, positions[n - 1]] += np.int32(1)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _add_tally(tally: Any, histogram: Any) -> None:
    """Add what `_bin` has counted to the histograms of both populations."""
    for k in range(NUM_BINS):
        in_paper = np.int64(tally[0, k + _COLUMNS]) + np.int64(tally[1, k + _COLUMNS])
        histogram[0, k] += np.int64(tally[0, k]) + np.int64(tally[1, k]) + in_paper
        histogram[1, k] += in_paper


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def _finish(
    abscissa: Any,
    element: Any,
    limits: Any,
    totals: Any,
    group: Any,
    words: Any,
    at: int,
    lo: int,
    hi: int,
    out: Any,
    counts: Any,
    sums: Any,
    positions: Any,
    tally: Any,
    r2_map: Any,
    slope_map: Any,
    intercept_map: Any,
) -> int:
    """Turn a tile's sums into figures; return how many parameters cannot be trusted."""
    n = hi - lo
    _close_group(totals, group, at, n)
    _solve(abscissa, limits, totals, group, words, at, n, out)
    unsafe: int = _total(abscissa[0], element, limits, totals, group, words, at, n, out, counts, sums)
    _bin(out, n, positions, tally)
    if r2_map.size:
        r2_map[lo:hi] = out[0, :n]
    if slope_map.size:
        slope_map[lo:hi] = out[1, :n]
    if intercept_map.size:
        intercept_map[lo:hi] = out[3, :n]
    return unsafe


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulate_all(
    bits: Any, element: Any, x: Any, rows_so_far: Any, totals: Any, group: Any, words: Any
) -> None:
    """Add the next rows, all of one group, to a block's state.

    ``rows_so_far``: (their number, Σx, whether they end a group, whether to move the pivot).
    """
    num_rows, total_x, closes, moves = rows_so_far
    for lo in range(0, bits.shape[1], _TILE):
        hi = min(lo + _TILE, bits.shape[1])
        if num_rows == 0:
            _begin(bits, lo, hi, element, totals, group, words, lo)
        if closes:
            _close_group(totals, group, lo, hi - lo)
        if moves:
            _move_pivot(num_rows, total_x, totals, group, lo, hi - lo)
        _count_distinct(bits, lo, hi, element[1], words, lo)
        _add_rows(bits, lo, hi, element[0], x, group, lo)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _finish_all(
    abscissa: Any,
    element: Any,
    limits: Any,
    totals: Any,
    group: Any,
    words: Any,
    counts: Any,
    sums: Any,
    histogram: Any,
    r2: Any,
    slope: Any,
    intercept: Any,
) -> int:
    out = np.empty((5, _TILE), np.float64)
    positions = np.empty(_TILE, np.int32)
    tally = np.zeros((2, 2 * _COLUMNS), np.int32)
    unsafe = 0
    for lo in range(0, words.shape[1], _TILE):
        hi = min(lo + _TILE, words.shape[1])
        unsafe += _finish(
            abscissa,
            element,
            limits,
            totals,
            group,
            words,
            lo,
            lo,
            hi,
            out,
            counts,
            sums,
            positions,
            tally,
            r2,
            slope,
            intercept,
        )
    _add_tally(tally, histogram)
    return unsafe


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _whole(
    bits: Any,
    element: Any,
    x: Any,
    abscissa: Any,
    limits: Any,
    group: Any,
    counts: Any,
    sums: Any,
    histogram: Any,
    r2: Any,
    slope: Any,
    intercept: Any,
) -> int:
    """Do all at once for a block of one group, whose sums never leave the cache; ``group`` is a tile wide."""
    totals = np.empty((3, _TILE), np.float64)
    words = np.empty((7, _TILE), bits.dtype)
    out = np.empty((5, _TILE), np.float64)
    positions = np.empty(_TILE, np.int32)
    tally = np.zeros((2, 2 * _COLUMNS), np.int32)
    unsafe = 0
    for lo in range(0, bits.shape[1], _TILE):
        hi = min(lo + _TILE, bits.shape[1])
        _begin(bits, lo, hi, element, totals, group, words, 0)
        _count_distinct(bits, lo, hi, element[1], words, 0)
        _add_rows(bits, lo, hi, element[0], x, group, 0)
        unsafe += _finish(
            abscissa,
            element,
            limits,
            totals,
            group,
            words,
            0,
            lo,
            hi,
            out,
            counts,
            sums,
            positions,
            tally,
            r2,
            slope,
            intercept,
        )
    _add_tally(tally, histogram)
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
    Memory between groups: `state_bytes` for each parameter; nothing when `fit` takes up to 16 rows at once.

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
        unsafe = _finish_all(self._abscissa.terms, self._element, self._limits, *self._state, *outputs)
        return result, self._trusted(result, unsafe)

    def fit(self, bits: np.ndarray[Any, Any]) -> tuple[BlockFit, bool]:
        """Do all at once for ``(num_steps, num_params)`` bits; same result as `add` and `finish`."""
        if bits.shape[0] > GROUP_ROWS:
            self.add(bits)
            return self.finish()
        result, outputs = self._outputs()
        abscissa = self._abscissa
        group = np.empty((6, _TILE), self._real)
        unsafe = _whole(bits, self._element, abscissa.x, abscissa.terms, self._limits, group, *outputs)
        return result, self._trusted(result, unsafe)

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
            so_far = (n, float(self._abscissa.x[:n].sum(dtype=np.float64)), closes, moves)
            part = bits[: GROUP_ROWS - num_open]
            x = self._abscissa.x[n : n + len(part)]
            _accumulate_all(part, self._element, x, so_far, *self._state)
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
        return BlockFit(counts, sums, histogram, **kept), (counts, sums, histogram, *arrays.values())

    @staticmethod
    def _trusted(result: BlockFit, unsafe: int) -> bool:
        return unsafe == 0 and bool(np.isfinite(result.sums).all())
