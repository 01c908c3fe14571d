"""Numbers to the narrower element type in which they are kept."""

from typing import Any

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.widen import float32_bits, float32_of_bits

__all__ = ["narrow"]

# Of float32: 2^16, below which float16 is finite; 2^-14, its smallest normal number; what a float16's exponent
# is less by; and 0.5, the sum with which has one unit in its last place for each of float16's smallest spacing.
_BEYOND, _NORMAL, _REBIAS, _HALF = 0x4780_0000, 0x3880_0000, (127 - 15) << 23, 0x3F00_0000
_INFINITY, _INFINITY16, _NAN16 = 0x7F80_0000, 0x7C00, 0x7E00


@nb.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _to_float16(values: Any, out: Any) -> None:
    """Round float32 to the nearest float16, ties to even; without branches, so that it vectorises."""
    for i in range(values.size):
        bits = float32_bits(values[i])
        sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
        size = np.uint32(bits & np.uint32(0x7FFF_FFFF))
        odd = np.uint32((size >> np.uint32(13)) & np.uint32(1))
        normal = np.uint32(size - np.uint32(_REBIAS) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        tiny = np.uint32(float32_bits(float32_of_bits(size) + np.float32(0.5)) - np.uint32(_HALF))
        special = np.uint32(_NAN16) if size > np.uint32(_INFINITY) else np.uint32(_INFINITY16)
        finite = np.uint32(tiny) if size < np.uint32(_NORMAL) else np.uint32(normal)
        magnitude = finite if size < np.uint32(_BEYOND) else special
        out[i] = np.uint16(magnitude | sign)


def narrow(values: np.ndarray[Any, Any], dtype: TensorDType, out: np.ndarray[Any, Any]) -> None:
    """Convert values, rounding to nearest, ties to even; what is too large becomes infinite.

    Parameters
    ----------
    values : numpy.ndarray
        ``(n,) float32`` or ``float64``.
    dtype : TensorDType
        float16, bfloat16, float32 or float64.
    out : numpy.ndarray
        ``(n,)`` of the dtype's NumPy type.

    Notes
    -----
    NumPy converts float32 to float16 one number at a time, at an eighth of the speed.
    """
    if dtype.zarr == "float16" and values.dtype == np.float32:
        _to_float16(values, out.view(np.uint16))
    else:
        with np.errstate(over="ignore"):
            out[...] = values
