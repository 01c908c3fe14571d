"""The step-delta transform of a chunk's bits, in place.

What it does is specified in ``docs/store-format.md``.  This module owns the arithmetic alone; the zarr
codec around it is `ckptlin.store.step_delta`.
"""

from typing import Any

import numba as nb
import numpy as np

__all__ = [
    "FLOAT",
    "SIGNED",
    "UNSIGNED",
    "delta_decode",
    "delta_encode",
    "from_ordered",
    "order_constants",
    "to_ordered",
    "undo_zigzag",
    "zigzag",
]

# How bits are ordered: sign and magnitude, two's complement, plain.
FLOAT, SIGNED, UNSIGNED = 0, 1, 2

# One row of a tile and its successor stay in the L1 cache (2 × 8 KiB for 16-bit values).
_TILE = 4096


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def to_ordered(word: Any, x: Any, kind: int, sign: Any, top: Any) -> Any:
    """Map bits to an unsigned integer in the order of the values (inside kernels)."""
    if kind == FLOAT:
        negative = word(word(0) - word(x >> top))
        return word(x ^ word(negative | sign))
    if kind == SIGNED:
        return word(x ^ sign)
    return x


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def from_ordered(word: Any, u: Any, kind: int, sign: Any, top: Any) -> Any:
    """Undo `to_ordered`."""
    if kind == FLOAT:
        negative = word(word(u >> top) - word(1))
        return word(u ^ word(negative | sign))
    if kind == SIGNED:
        return word(u ^ sign)
    return u


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def zigzag(word: Any, d: Any, top: Any) -> Any:
    """Map a difference of either sign to a small integer: 0, −1, 1, −2 to 0, 1, 2, 3 (inside kernels)."""
    return word(word(d << word(1)) ^ word(word(0) - word(d >> top)))


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def undo_zigzag(word: Any, z: Any) -> Any:
    """Undo `zigzag`."""
    return word(word(z >> word(1)) ^ word(word(0) - word(z & word(1))))


# numba widens every integer operation to 64 bits; casting each intermediate back to ``word`` lets LLVM
# narrow the loop again to the full SIMD width.


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _encode(bits: Any, kind: int, sign: Any, top: Any) -> None:
    word = bits.dtype.type
    num_rows, num_params = bits.shape
    for lo in range(0, num_params, _TILE):
        hi = min(lo + _TILE, num_params)
        for t in range(num_rows - 1):
            row = bits[t, lo:hi]
            after = bits[t + 1, lo:hi]
            for i in range(hi - lo):
                here = to_ordered(word, row[i], kind, sign, top)
                there = to_ordered(word, after[i], kind, sign, top)
                d = word(here - there)
                row[i] = zigzag(word, d, top)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _decode(bits: Any, kind: int, sign: Any, top: Any) -> None:
    word = bits.dtype.type
    num_rows, num_params = bits.shape
    for lo in range(0, num_params, _TILE):
        hi = min(lo + _TILE, num_params)
        for t in range(num_rows - 2, -1, -1):
            row = bits[t, lo:hi]
            after = bits[t + 1, lo:hi]
            for i in range(hi - lo):
                d = undo_zigzag(word, row[i])
                there = to_ordered(word, after[i], kind, sign, top)
                row[i] = from_ordered(word, word(there + d), kind, sign, top)


def order_constants(bits: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return the sign bit and its position, in the width of ``bits``: the kernels' last arguments."""
    word = bits.dtype.type
    top = bits.dtype.itemsize * 8 - 1
    return word(1 << top), word(top)


def delta_encode(bits: np.ndarray[Any, Any], kind: int) -> None:
    """Replace every row but the last by its zigzag-coded difference to the row after it.

    Parameters
    ----------
    bits : numpy.ndarray
        Shape ``(num_rows, num_params)``, uint8, uint16, uint32 or uint64, C-contiguous; changed in place.
    kind : int
        `FLOAT`, `SIGNED` or `UNSIGNED`: how the bits are ordered.
    """
    _encode(bits, kind, *order_constants(bits))


def delta_decode(bits: np.ndarray[Any, Any], kind: int) -> None:
    """Undo `delta_encode`, in place and exactly."""
    _decode(bits, kind, *order_constants(bits))
