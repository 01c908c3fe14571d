"""Least squares of one tile of parameters: the arithmetic of `ckptlin.kernels.regression`.

Legend: s step, x = (s − s̄)/sd(s), w weight, p pivot, d = w − p.

Between calls a parameter's state is a column of three arrays.  ``totals``, ``(3, n) float64``: Σd, Σxd and Σd²
of all finished groups.  ``group``, ``(6, n)``: the pivot, the same sums of the group under way, the lowest and
the highest value; its dtype, float32 or float64, is what sums are taken in.  ``words``, ``(7, n)`` of the bits
dtype: the first and the last bits; of the distinct values the first, the latest and the one before that; what
tells that a fourth came (not 0); the bits that changed.

``element`` is what an element type is to a kernel: (tag, sign bit, unit in the last place of 1, smallest
spacing).  ``limits``: the two between which Σd² can be trusted, and the least variation that has an R².

Rows are sliced as ``array[t, lo:hi]``: numba types that as contiguous, and only then does LLVM vectorise
(measured: 8 to 10 times the speed of slicing two dimensions first).  Arrays are taken out of a tuple by their
indices: of arrays that `a, b = pair` had unpacked, numba 0.65 lost `b[k, lo:hi] = number` without a word.
"""

from typing import Any, NamedTuple

import numba as nb
import numpy as np

from ckptlin.kernels.widen import float64_bits, float64_of_bits, widen
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

__all__ = [
    "COUNT",
    "GROUP_ROWS",
    "NUM_BINS",
    "SUM",
    "TILE",
    "accumulate_rows",
    "add_tally",
    "begin",
    "close_group",
    "finish",
    "fit_tile",
    "move_pivot",
    "tile_scratch",
    "tile_state",
    "ulp",
]

GROUP_ROWS = 16
NUM_BINS = 1000
TILE = 1024
_COLUMNS = NUM_BINS + 1
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


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def ulp(value: float, epsilon: float, smallest: float) -> Any:
    """One unit in the last place of a value of the element type."""
    power = float64_of_bits(float64_bits(value) & np.uint64(0x7FF0_0000_0000_0000))
    return max(power * epsilon, smallest)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def begin(bits: Any, rows: Any, lo: int, hi: int, element: Any, state: Any, at: int) -> None:
    """Start tile ``lo:hi`` from the first of the rows ``(start, stop)``, its state at column ``at``.

    The pivot is the median of the first three weights: a first checkpoint that lies far from all others (the
    base model) would double the error.
    """
    n = hi - lo
    group, words = state[1], state[2]
    word = bits.dtype.type
    real = group.dtype.type
    tag, sign, _, _ = element
    start, stop = rows
    row, second = bits[start, lo:hi], bits[min(start + 1, stop - 1), lo:hi]
    third = bits[min(start + 2, stop - 1), lo:hi]
    pivot = group[0, at : at + n]
    for i in range(n):
        a, b, c = real(widen(row[i], tag)), real(widen(second[i], tag)), real(widen(third[i], tag))
        smaller = a if a < b else b
        larger = a if a > b else b
        middle = larger if larger < c else c
        pivot[i] = smaller if smaller > middle else middle
    for k in range(3):
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
def _count_distinct(bits: Any, rows: Any, lo: int, hi: int, sign: Any, words: Any, at: int) -> None:
    """Follow distinct values and changed bits through the rows of a tile, four rows a pass."""
    n = hi - lo
    word = bits.dtype.type
    first, base, moved = words[0, at : at + n], words[2, at : at + n], words[6, at : at + n]
    latest, before, fourth = words[3, at : at + n], words[4, at : at + n], words[5, at : at + n]
    start, stop = rows
    whole = stop - (stop - start) % 4
    for t in range(start, whole, 4):
        row_a, row_b, row_c, row_d = bits[t, lo:hi], bits[t + 1, lo:hi], bits[t + 2, lo:hi], bits[t + 3, lo:hi]
        for i in range(n):
            a, b, c, d, origin = row_a[i], row_b[i], row_c[i], row_d[i], first[i]
            changed = word(
                word(word(a ^ origin) | word(b ^ origin)) | word(word(c ^ origin) | word(d ^ origin))
            )
            moved[i] = word(moved[i] | changed)
            one, two, more = latest[i], before[i], fourth[i]
            one, two, more = _see(word, a, sign, base[i], one, two, more)
            one, two, more = _see(word, b, sign, base[i], one, two, more)
            one, two, more = _see(word, c, sign, base[i], one, two, more)
            one, two, more = _see(word, d, sign, base[i], one, two, more)
            latest[i], before[i], fourth[i] = one, two, more
    for t in range(whole, stop):
        row = bits[t, lo:hi]
        for i in range(n):
            moved[i] = word(moved[i] | word(row[i] ^ first[i]))
            one, two, more = _see(word, row[i], sign, base[i], latest[i], before[i], fourth[i])
            latest[i], before[i], fourth[i] = one, two, more
    words[1, at : at + n] = bits[stop - 1, lo:hi]


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _add_rows(bits: Any, rows: Any, lo: int, hi: int, tag: Any, x: Any, group: Any, at: int) -> None:
    """Add rows to Σd, Σxd, Σd², lowest, highest of a tile, four rows a pass; ``x`` is one a row."""
    n = hi - lo
    real = group.dtype.type
    pivot = group[0, at : at + n]
    sum_d, sum_xd, sum_dd = group[1, at : at + n], group[2, at : at + n], group[3, at : at + n]
    low, high = group[4, at : at + n], group[5, at : at + n]
    start, stop = rows
    whole = stop - (stop - start) % 4
    for t in range(start, whole, 4):
        row_a, row_b, row_c, row_d = bits[t, lo:hi], bits[t + 1, lo:hi], bits[t + 2, lo:hi], bits[t + 3, lo:hi]
        xa, xb, xc, xd = real(x[t]), real(x[t + 1]), real(x[t + 2]), real(x[t + 3])
        for i in range(n):
            wa, wb = real(widen(row_a[i], tag)), real(widen(row_b[i], tag))
            wc, wd = real(widen(row_c[i], tag)), real(widen(row_d[i], tag))
            da, db, dc, dd = wa - pivot[i], wb - pivot[i], wc - pivot[i], wd - pivot[i]
            sum_d[i] += (da + db) + (dc + dd)
            sum_xd[i] += (xa * da + xb * db) + (xc * dc + xd * dd)
            sum_dd[i] += (da * da + db * db) + (dc * dc + dd * dd)
            # A comparison for each, or LLVM makes three instructions of what the processor does in one.
            smaller, smaller_after = wa if wa < wb else wb, wc if wc < wd else wd
            larger, larger_after = wa if wa > wb else wb, wc if wc > wd else wd
            smaller = smaller if smaller < smaller_after else smaller_after
            larger = larger if larger > larger_after else larger_after
            low[i] = smaller if smaller < low[i] else low[i]
            high[i] = larger if larger > high[i] else high[i]
    for t in range(whole, stop):
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
def close_group(is_first: bool, state: Any, at: int, n: int) -> None:
    """Add the sums of a finished group to the totals, which are still empty before the first."""
    totals, group = state[0], state[1]
    real = group.dtype.type
    for k in range(3):
        total, part = totals[k, at : at + n], group[k + 1, at : at + n]
        if is_first:
            for i in range(n):
                total[i] = part[i]
        else:
            for i in range(n):
                total[i] += part[i]
        group[k + 1, at : at + n] = real(0.0)


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def move_pivot(num_rows: int, total_x: float, state: Any, at: int, n: int) -> None:
    """Move the pivot, and the totals with it, to the mean of the rows so far; ``total_x`` is their Σx."""
    totals, group = state[0], state[1]
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
def _solve(abscissa: Any, limits: Any, state: Any, at: int, n: int, out: Any) -> None:
    """Write R² (NaN where undefined), slope, variation and intercept of a tile to the rows of ``out``."""
    totals, group, words = state[0], state[1], state[2]
    num_steps, total_x, total_xx, mean, scale = abscissa
    _, _, least = limits
    real = out.dtype.type
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
        steepness = per_x * per_scale if defined else 0.0
        r2[i] = real((ratio if ratio < 1.0 else 1.0) if defined else np.nan)
        slope[i] = real(steepness)
        variation[i] = real(var if defined else 0.0)
        intercept[i] = real(pivot[i] + d_bar - steepness * mean)


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _sum_up(num_steps: int, element: Any, state: Any, at: int, n: int, out: Any, sums: Any) -> None:
    """Add a tile to the sums; note in ``out`` who is in the paper's population."""
    group, words = state[1], state[2]
    tag, _, epsilon, smallest = element
    real = out.dtype.type
    first, last, fourth = words[0, at : at + n], words[1, at : at + n], words[5, at : at + n]
    low, high = group[4, at : at + n], group[5, at : at + n]
    r2, variation, paper = out[0, :n], out[2, :n], out[4, :n]
    sum_r2 = sum_r2_paper = update = squares = sum_variation = residual = rounding = 0.0
    for i in range(n):
        value = np.float64(widen(first[i], tag))
        change = np.float64(widen(last[i], tag)) - value
        squares += value * value
        update += change * change
        defined = r2[i] == r2[i]
        r = np.float64(r2[i]) if defined else 0.0
        sum_r2 += r
        sum_variation += variation[i]
        residual += variation[i] * (1.0 - r)
        unit = ulp(value, epsilon, smallest)
        rounding += unit * unit if defined else 0.0
        in_paper = defined & (np.float64(high[i]) - np.float64(low[i]) > PAPER_MIN_RANGE) & (fourth[i] != 0)
        paper[i] = real(1.0) if in_paper else real(0.0)
        sum_r2_paper += r if in_paper else 0.0
    sums[SUM.r2_moved] += sum_r2
    sums[SUM.r2_paper] += sum_r2_paper
    sums[SUM.update] += update
    sums[SUM.first] += squares
    sums[SUM.variation] += sum_variation
    sums[SUM.residual] += residual
    sums[SUM.rounding] += rounding * num_steps / 12.0


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _count(limits: Any, state: Any, at: int, n: int, out: Any, counts: Any) -> int:
    """Add a tile to the counts; return how many parameters cannot be trusted.

    A tile's counts are numbers of the type that the sums are taken in, exact up to 2²⁴: whole numbers would
    halve the width of the loop.
    """
    totals, group, words = state[0], state[1], state[2]
    real = out.dtype.type
    safe_low, safe_high = real(limits[0]), real(limits[1])
    one, zero = real(1.0), real(0.0)
    sum_dd, moved = totals[2, at : at + n], words[6, at : at + n]
    low, high = group[4, at : at + n], group[5, at : at + n]
    r2, paper = out[0, :n], out[4, :n]
    unchanged = undefined = above_7 = above_9 = in_paper = paper_above_7 = paper_above_9 = unsafe = zero
    for i in range(n):
        still = moved[i] == 0
        defined = r2[i] == r2[i]
        square = real(sum_dd[i])
        # Squares that are 0 although the values differ have underflowed; comparisons with NaN are false.
        safe = (square < safe_high) & ((square > safe_low) | ((square == zero) & (high[i] == low[i])))
        r = r2[i] if defined else zero
        r_paper = r * paper[i]
        unchanged += one if still else zero
        undefined += zero if still | defined else one
        unsafe += zero if still | safe else one
        above_7 += one if r > real(0.7) else zero
        above_9 += one if r > real(0.9) else zero
        in_paper += paper[i]
        paper_above_7 += one if r_paper > real(0.7) else zero
        paper_above_9 += one if r_paper > real(0.9) else zero
    counts[COUNT.params] += n
    counts[COUNT.unchanged] += np.int64(unchanged)
    counts[COUNT.undefined] += np.int64(undefined)
    counts[COUNT.moved_above_7] += np.int64(above_7)
    counts[COUNT.moved_above_9] += np.int64(above_9)
    counts[COUNT.paper] += np.int64(in_paper)
    counts[COUNT.paper_above_7] += np.int64(paper_above_7)
    counts[COUNT.paper_above_9] += np.int64(paper_above_9)
    return int(unsafe)


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _bin(out: Any, n: int, positions: Any, tally: Any) -> None:
    """Count the R² of a tile in ``tally``, ``(2, 2 (NUM_BINS + 1)) int32``.

    Columns: the bins of R² outside the paper's population, one for those without R², and the same inside it.
    Its two rows take turns: a count waits for the one before it where both fall into the same bin.
    """
    real = out.dtype.type
    r2, paper = out[0, :n], out[4, :n]
    last = real(NUM_BINS - 1)
    for i in range(n):
        scaled = r2[i] * real(NUM_BINS)
        scaled = scaled if scaled < last else last
        column = scaled if r2[i] == r2[i] else real(NUM_BINS)
        positions[i] = np.int32(column) + np.int32(paper[i] * real(_COLUMNS))
    for i in range(0, n - 1, 2):
        tally[0, positions[i]] += np.int32(1)
        tally[1, positions[i + 1]] += np.int32(1)
    if n % 2:
        tally[0, positions[n - 1]] += np.int32(1)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def add_tally(tally: Any, histogram: Any) -> None:
    """Add what `_bin` has counted to the histograms of both populations."""
    for k in range(NUM_BINS):
        in_paper = np.int64(tally[0, k + _COLUMNS]) + np.int64(tally[1, k + _COLUMNS])
        histogram[0, k] += np.int64(tally[0, k]) + np.int64(tally[1, k]) + in_paper
        histogram[1, k] += in_paper


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def accumulate_rows(bits: Any, rows: Any, lo: int, hi: int, element: Any, x: Any, state: Any, at: int) -> None:
    """Add rows ``(start, stop)``, all of one group, to a tile's state; ``x`` has an entry for each row."""
    group, words = state[1], state[2]
    _count_distinct(bits, rows, lo, hi, element[1], words, at)
    _add_rows(bits, rows, lo, hi, element[0], x, group, at)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def finish(
    line: Any,
    element: Any,
    limits: Any,
    state: Any,
    at: int,
    n: int,
    scratch: Any,
    figures: Any,
    maps: Any,
    to: int,
) -> int:
    """Turn a tile's sums into figures, and maps from column ``to`` on; return how many cannot be trusted.

    ``line``: `Abscissa.terms`.  ``figures``: counts and sums.  ``maps``: of R², slope and intercept; those that
    nobody wants are empty.
    """
    out, positions, tally = scratch[0], scratch[1], scratch[2]
    counts, sums = figures[0], figures[1]
    r2, slope, intercept = maps[0], maps[1], maps[2]
    close_group(line[0] <= GROUP_ROWS, state, at, n)
    _solve(line, limits, state, at, n, out)
    _sum_up(line[0], element, state, at, n, out, sums)
    unsafe: int = _count(limits, state, at, n, out, counts)
    _bin(out, n, positions, tally)
    if r2.size:
        r2[to : to + n] = out[0, :n]
    if slope.size:
        slope[to : to + n] = out[1, :n]
    if intercept.size:
        intercept[to : to + n] = out[3, :n]
    return unsafe


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def tile_state(bits: Any, group: Any) -> tuple[Any, Any, Any]:
    """Return the state of one tile; ``group`` is its second array, whose dtype is to be that of the sums."""
    return np.empty((3, TILE), np.float64), group, np.empty((7, TILE), bits.dtype)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def tile_scratch(group: Any) -> tuple[Any, Any, Any]:
    """Return what `finish` works in: figures of a tile, its positions in the histogram, and the histogram."""
    return np.empty((5, TILE), group.dtype), np.empty(TILE, np.int32), np.zeros((2, 2 * _COLUMNS), np.int32)


@nb.njit(nogil=True)  # type: ignore[untyped-decorator]
def fit_tile(
    bits: Any,
    rows: Any,
    lo: int,
    hi: int,
    x: Any,
    x_sums: Any,
    line: Any,
    element: Any,
    limits: Any,
    state: Any,
    scratch: Any,
    figures: Any,
    maps: Any,
    to: int,
) -> int:
    """Fit tile ``lo:hi`` of the rows ``(start, stop)`` at once; its sums never leave the cache.

    ``x_sums``: Σx of the rows before each group.  See `finish` for the others.
    """
    start, stop = rows
    n = hi - lo
    begin(bits, rows, lo, hi, element, state, 0)
    for at in range(start, stop, GROUP_ROWS):
        num_groups = (at - start) // GROUP_ROWS
        if num_groups > 0:
            close_group(num_groups == 1, state, 0, n)
            if num_groups & (num_groups - 1) == 0:
                move_pivot(at - start, x_sums[num_groups], state, 0, n)
        accumulate_rows(bits, (at, min(at + GROUP_ROWS, stop)), lo, hi, element, x, state, 0)
    unsafe: int = finish(line, element, limits, state, 0, n, scratch, figures, maps, to)
    return unsafe
