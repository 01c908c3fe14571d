"""The weighted sum of a block's rows: the one kernel behind every affine prediction.

With Σa_t = 1 the sum is w_r + Σ a_t (w_t − w_r), r the first row with a coefficient other than zero.  It is
taken in float64 in that form and rounded once: for two rows it is W_0 + α(W_1 − W_0) to the last bit.
"""

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.widen import TAGS, float32_bits, float32_of_bits, widen

__all__ = ["BlockSum", "RoundedBlock", "round_once"]

_TILE = 2048


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_rows(bits: Any, rows: Any, coefficients: Any, reference: Any, tag: Any, total: Any) -> None:
    """``total += Σ a_t (w_t − w_r)`` over ``rows``, one after the other, four of them a pass."""
    num_rows, num_params = rows.size, bits.shape[1]
    base = np.empty(_TILE, np.float64)
    for lo in range(0, num_params, _TILE):
        hi = min(lo + _TILE, num_params)
        n = hi - lo
        origin = reference[lo:hi]
        for i in range(n):
            base[i] = widen(origin[i], tag)
        part = total[lo:hi]
        for k in range(0, num_rows - 3, 4):
            a, b, c, d = coefficients[k], coefficients[k + 1], coefficients[k + 2], coefficients[k + 3]
            row_a, row_b = bits[rows[k], lo:hi], bits[rows[k + 1], lo:hi]
            row_c, row_d = bits[rows[k + 2], lo:hi], bits[rows[k + 3], lo:hi]
            for i in range(n):
                x = part[i]
                x += a * (np.float64(widen(row_a[i], tag)) - base[i])
                x += b * (np.float64(widen(row_b[i], tag)) - base[i])
                x += c * (np.float64(widen(row_c[i], tag)) - base[i])
                x += d * (np.float64(widen(row_d[i], tag)) - base[i])
                part[i] = x
        for k in range(num_rows - num_rows % 4, num_rows):
            a = coefficients[k]
            row_a = bits[rows[k], lo:hi]
            for i in range(n):
                part[i] += a * (np.float64(widen(row_a[i], tag)) - base[i])


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _finish(reference: Any, tag: Any, total: Any) -> bool:
    """``total += w_r``; tell whether all is finite."""
    num_beyond = 0
    for i in range(total.size):
        total[i] = np.float64(widen(reference[i], tag)) + total[i]
        num_beyond += not abs(total[i]) < np.inf
    return num_beyond == 0


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_losses(values: Any, last: Any, tag: Any, total: Any) -> tuple[int, int]:
    """Count what rounding made equal to ``last`` although ``total`` is not, and what is not finite any more."""
    num_lost = num_overflowed = 0
    for i in range(total.size):
        value, before = np.float64(widen(values[i], tag)), np.float64(widen(last[i], tag))
        num_lost += (value == before) & (total[i] != before)
        num_overflowed += not abs(value) < np.inf
    return num_lost, num_overflowed


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _to_odd(x: Any) -> Any:
    """Round float64 to float32 towards zero and set the last bit if anything was lost.

    Rounded further, to at most 22 bits, it comes out as if rounded once (Boldo and Melquiond, 2008).
    """
    nearest = np.float32(x)
    bits = float32_bits(nearest)
    if np.float64(nearest) != x and x == x:
        if abs(np.float64(nearest)) > abs(x):
            bits -= np.uint32(1)
        bits |= np.uint32(1)
    return bits


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _round_to_odd(values: Any, out: Any) -> None:
    for i in range(values.size):
        out[i] = float32_of_bits(_to_odd(values[i]))


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _round_to_bfloat16(values: Any, out: Any) -> None:
    for i in range(values.size):
        if values[i] != values[i]:
            out[i] = np.uint16(0x7FC0)  # added to, a payload of ones would run over into zero
            continue
        bits = _to_odd(values[i])
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        out[i] = np.uint16((bits + half) >> np.uint32(16))


@dataclass(frozen=True, slots=True)
class RoundedBlock:
    """A predicted block.

    Attributes
    ----------
    values : numpy.ndarray
        ``(num_params,)`` of the output dtype.
    num_lost : int
        Parameters that were predicted to differ from the last checkpoint, and do not after rounding.
    num_overflowed : int
        Values that are not finite.
    is_finite : bool
        Whether all predictions were finite, also those that ``keep`` set aside, before they were rounded.
    """

    values: np.ndarray[Any, Any]
    num_lost: int
    num_overflowed: int
    is_finite: bool


class BlockSum:
    """The weighted sum of one block, fed with groups of rows.

    Parameters
    ----------
    dtype : TensorDType
        bfloat16, float16, float32 or float64.
    reference : numpy.ndarray
        ``(num_params,)`` bits of the first row whose coefficient is not zero.

    Notes
    -----
    The accumulator is float64: 8 bytes a parameter.  It begins at −0.0, which changes nothing that it is added
    to.
    """

    def __init__(self, dtype: TensorDType, reference: np.ndarray[Any, Any]) -> None:
        self._tag = TAGS[dtype.zarr]
        self._dtype = dtype
        self._reference = reference
        self._total = np.full(reference.size, -0.0)

    def add(self, bits: np.ndarray[Any, Any], coefficients: np.ndarray[Any, Any]) -> None:
        """Add rows, ``(num_rows, num_params)`` bits, with their coefficients, ``(num_rows,) float64``.

        The reference row adds nothing: give its coefficient as 0, and a lone −0.0 stays one.
        """
        rows = np.flatnonzero(coefficients)  # infinity times zero is not zero
        _add_rows(bits, rows, coefficients[rows], self._reference, self._tag, self._total)

    def shift(self, values: np.ndarray[Any, Any]) -> None:
        """Add a move, ``(num_params,) float64``, that is no row's."""
        self._total += values

    def finish(
        self, last: np.ndarray[Any, Any], keep: np.ndarray[Any, Any] | None, dtype: TensorDType
    ) -> RoundedBlock:
        """Round the sum to a dtype.

        Parameters
        ----------
        last : numpy.ndarray
            ``(num_params,)`` bits of the last checkpoint.
        keep : numpy.ndarray or None
            ``(num_params,) bool``: parameters that take the last checkpoint's value instead.
        dtype : TensorDType
            Of the result.
        """
        is_finite = _finish(self._reference, self._tag, self._total)
        total = self._total
        with np.errstate(invalid="ignore"):  # signalling NaN, of which the caller is told
            if keep is not None:
                total[keep] = last[keep].view(self._dtype.numpy).astype(np.float64)
            values = round_once(total, dtype)
            if dtype == self._dtype:
                num_lost, num_overflowed = _count_losses(values.view(dtype.bits), last, self._tag, total)
                return RoundedBlock(values, num_lost, num_overflowed, is_finite)
            last_values = last.view(self._dtype.numpy).astype(np.float64)
            lost = (values == round_once(last_values, dtype)) & (total != last_values)
        return RoundedBlock(values, int(lost.sum()), int((~np.isfinite(values)).sum()), is_finite)


def round_once(values: np.ndarray[Any, Any], dtype: TensorDType) -> np.ndarray[Any, Any]:
    """Round float64 to the nearest number of a dtype, ties to even; beyond its range lies infinity.

    (The cast of ml_dtypes goes by way of float32, and so rounds twice.)
    """
    if dtype.zarr == "float64":
        return values.copy()
    with np.errstate(over="ignore"):
        if dtype.zarr == "float32":
            return values.astype(np.float32)
        if dtype.zarr == "bfloat16":
            bits = np.empty(values.size, np.uint16)
            _round_to_bfloat16(values, bits)
            return bits.view(dtype.numpy)
        odd = np.empty(values.size, np.float32)
        _round_to_odd(values, odd)
        return odd.astype(dtype.numpy)
