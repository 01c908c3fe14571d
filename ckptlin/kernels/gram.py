"""Inner products of what a block's parameters move by, from one checkpoint to the next.

Legend: w weight, f_t = w_{t+1} − w_t, H_tu = Σ f_t f_u over the parameters of a block.  With w_1 the first
checkpoint, w_t − w_1 = f_1 + … + f_{t−1}, so that their inner products G are running sums of H over both axes
(`ckptlin.block_gram.accumulate`).  H rather than G, because neighbouring checkpoints are close: differences are
exact or nearly so, a window of late steps does not inherit the rounding of a large distance from the first, and
rows can be added.

Work goes tile by tile: the differences of 256 parameters are made in the cache, each pair of rows is multiplied
and summed over the tile in float32 (in float64 where squares leave float32's range), and tiles are summed in
float64.  Every product comes out of the same loop, nine pairs at a time with rows of zeros to fill up, and
tiles begin at fixed places: a pair's sum is the same to the last bit, whatever rows come along with it.

A loop of our own and not BLAS: one thread's products of a tile of 14 rows took a third of the time of
OpenBLAS called from numpy, of 50 rows about as much, and OpenBLAS would start threads of its own in every
worker.  Larger tiles are no faster (14 rows fit into L1), and shorter sums are more accurate: over many weights
errors come to some 1e-9 of the lengths of two moves, and to up to 4e-8 of a square, whose terms are all of one
sign and on a 16-bit grid rounded down more often than up (an odd square is 1 modulo 8); twice the tile, twice
the error.
"""

from typing import Any

import ml_dtypes
import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.regression import ulp
from ckptlin.kernels.widen import TAGS, widen

__all__ = ["cross_products", "products", "rounding_of"]

_TILE = 256
# Rows that are multiplied with as many others at a time: nine sums and six loads fit into 16 registers.
_ROWS = 3


@nb.njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _differences(bits: Any, after: Any, lo: int, hi: int, tag: Any, num_rows: int, path: Any, out: Any) -> None:
    """Write a tile's differences to ``out``, and add their sizes to ``path`` if that has a length."""
    n = hi - lo
    real = out.dtype.type
    for t in range(num_rows):
        row = bits[t, lo:hi]
        following = bits[t + 1, lo:hi] if t + 1 < bits.shape[0] else after[lo:hi]
        difference = out[t, :n]
        for i in range(n):
            difference[i] = real(widen(following[i], tag)) - real(widen(row[i], tag))
        if path.size:
            length = path[lo:hi]
            for i in range(n):
                length[i] += abs(difference[i])


@nb.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _multiply(left: Any, t: int, right: Any, u: int, n: int, out: Any) -> None:
    """Add the inner products of three rows with three others, whose sums stay in registers."""
    real = left.dtype.type
    a, b, c = left[t, :n], left[t + 1, :n], left[t + 2, :n]
    x, y, z = right[u, :n], right[u + 1, :n], right[u + 2, :n]
    ax = ay = az = bx = by = bz = cx = cy = cz = real(0.0)
    for i in range(n):
        ax += a[i] * x[i]
        ay += a[i] * y[i]
        az += a[i] * z[i]
        bx += b[i] * x[i]
        by += b[i] * y[i]
        bz += b[i] * z[i]
        cx += c[i] * x[i]
        cy += c[i] * y[i]
        cz += c[i] * z[i]
    out[t, u] += np.float64(ax)
    out[t, u + 1] += np.float64(ay)
    out[t, u + 2] += np.float64(az)
    out[t + 1, u] += np.float64(bx)
    out[t + 1, u + 1] += np.float64(by)
    out[t + 1, u + 2] += np.float64(bz)
    out[t + 2, u] += np.float64(cx)
    out[t + 2, u + 1] += np.float64(cy)
    out[t + 2, u + 2] += np.float64(cz)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _all_products(
    bits: Any, after: Any, tag: Any, num_rows: int, first: int, path: Any, tile: Any, out: Any
) -> None:
    """Add the products of all pairs of rows of which the later is ``first`` or later."""
    for lo in range(0, bits.shape[1], _TILE):
        hi = min(lo + _TILE, bits.shape[1])
        _differences(bits, after, lo, hi, tag, num_rows, path, tile)
        for t in range(0, num_rows, _ROWS):
            for u in range(max(t, first // _ROWS * _ROWS), num_rows, _ROWS):
                _multiply(tile, t, tile, u, hi - lo, out)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _cross_products(
    left: Any,
    after_left: Any,
    num_left: int,
    right: Any,
    after_right: Any,
    num_right: int,
    tag: Any,
    left_tile: Any,
    right_tile: Any,
    out: Any,
) -> None:
    """Add the products of every row on the left with every row on the right."""
    no_path = left_tile[0, :0]
    for lo in range(0, left.shape[1], _TILE):
        hi = min(lo + _TILE, left.shape[1])
        _differences(left, after_left, lo, hi, tag, num_left, no_path, left_tile)
        _differences(right, after_right, lo, hi, tag, num_right, no_path, right_tile)
        for t in range(0, num_left, _ROWS):
            for u in range(0, num_right, _ROWS):
                _multiply(left_tile, t, right_tile, u, hi - lo, out)


@nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})  # type: ignore[untyped-decorator]
def _rounding(bits: Any, tag: Any, path: Any, epsilon: float, smallest: float) -> float:
    """Sum ulp² over the parameters that moved."""
    total = 0.0
    for i in range(bits.shape[0]):
        one = ulp(np.float64(widen(bits[i], tag)), epsilon, smallest)
        total += one * one if path[i] > 0 else 0.0
    return total


def products(
    bits: np.ndarray[Any, Any],
    after: np.ndarray[Any, Any] | None,
    dtype: TensorDType,
    path: np.ndarray[Any, Any],
    *,
    first: int = 0,
) -> np.ndarray[Any, Any]:
    """Return the inner products of the differences of a block's rows.

    Parameters
    ----------
    bits : (num_rows, num_params) of the bits dtype
        C-contiguous.
    after : (num_params,) of the bits dtype or None
        The row that follows; None if there is none, and then the last row has no difference.
    dtype : TensorDType
        bfloat16, float16, float32 or float64.
    path : (num_params,) float32 or float64, or empty
        What tiles are summed in is its dtype.  Each parameter's Σ|f| is added to it.
    first : int, optional
        Leave out pairs of which both differences are before this one; they come out as some number.

    Returns
    -------
    numpy.ndarray
        ``(num_differences, num_differences) float64``, symmetric.  NaN or infinity where a weight is that, or a
        square leaves the range of the sums.
    """
    num = len(bits) - (after is None)
    tile, out = _tile(num, path.dtype), _result(num, num)
    _all_products(bits, bits[0] if after is None else after, TAGS[dtype.zarr], num, first, path, tile, out)
    upper = np.triu(out[:num, :num])
    return upper + np.triu(upper, 1).T


def cross_products(
    left: np.ndarray[Any, Any],
    after_left: np.ndarray[Any, Any] | None,
    right: np.ndarray[Any, Any],
    after_right: np.ndarray[Any, Any] | None,
    dtype: TensorDType,
    real: type[np.floating[Any]],
) -> np.ndarray[Any, Any]:
    """Return the inner products of the differences of some rows of a block with those of others.

    As in `products`, to the last bit; ``real`` is what tiles are summed in.

    Returns
    -------
    numpy.ndarray
        ``(differences on the left, differences on the right) float64``.
    """
    num_left, num_right = len(left) - (after_left is None), len(right) - (after_right is None)
    out = _result(num_left, num_right)
    _cross_products(
        left,
        left[0] if after_left is None else after_left,
        num_left,
        right,
        right[0] if after_right is None else after_right,
        num_right,
        TAGS[dtype.zarr],
        _tile(num_left, real),
        _tile(num_right, real),
        out,
    )
    return out[:num_left, :num_right]


def rounding_of(first: np.ndarray[Any, Any], path: np.ndarray[Any, Any], dtype: TensorDType) -> float:
    """Return what rounding to the element type adds to one row's squares: Σ ulp(w)²/12 over what moved.

    Rounding to nearest errs by up to half a unit in the last place, evenly: ulp²/12 in the mean.

    Parameters
    ----------
    first : (num_params,) of the bits dtype
        The weights whose unit in the last place counts.
    path : (num_params,) float32 or float64
        What each parameter moved by, see `products`.
    dtype : TensorDType

    Returns
    -------
    float
        0 for float64, which rounds beyond what is summed here.
    """
    if dtype.zarr == "float64":
        return 0.0
    smallest = float(ml_dtypes.finfo(dtype.numpy).smallest_subnormal)  # type: ignore[no-untyped-call]
    total: float = _rounding(first, TAGS[dtype.zarr], path, 2.0 ** -(dtype.mantissa_bits or 0), smallest)
    return total / 12.0


def _tile(num_rows: int, real: Any) -> np.ndarray[Any, Any]:
    """Return room for a tile of differences; rows that fill up the number are zero."""
    return np.zeros((_filled_up(num_rows), _TILE), real)


def _result(num_left: int, num_right: int) -> np.ndarray[Any, Any]:
    return np.zeros((_filled_up(num_left), _filled_up(num_right)))


def _filled_up(num_rows: int) -> int:
    return -(-num_rows // _ROWS) * _ROWS
