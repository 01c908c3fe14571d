"""The element types of checkpoints: their names in safetensors and zarr, and what may be done to them.

numpy has no bfloat16 or float8; ``ml_dtypes`` provides them.  A *bits* type is the unsigned integer of
the same width: kernels and codecs work on bits, so that NaN payloads and −0.0 survive.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["DTYPES", "TensorDType", "bits_dtype", "from_numpy", "from_safetensors", "from_zarr", "is_fitted"]


@dataclass(frozen=True, slots=True)
class TensorDType:
    """An element type that ckptlin can store.

    Attributes
    ----------
    safetensors : str
        Name in a safetensors header, such as ``BF16``.
    zarr : str
        Name of the zarr v3 data type, such as ``bfloat16``.
    numpy : numpy.dtype
        In-memory type, little-endian.
    mantissa_bits : int or None
        Explicit mantissa bits of a floating type, None for integers and booleans.  One unit in the last
        place of x is ``2 ** (floor(log2(abs(x))) - mantissa_bits)``.
    """

    safetensors: str
    zarr: str
    numpy: np.dtype[Any]
    mantissa_bits: int | None = None

    @property
    def is_float(self) -> bool:
        """Whether it is a floating type."""
        return self.mantissa_bits is not None

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def bits(self) -> np.dtype[Any]:
        """Unsigned integer dtype of the same width."""
        return bits_dtype(self.numpy)


DTYPES: tuple[TensorDType, ...] = (
    TensorDType("F64", "float64", np.dtype("<f8"), 52),
    TensorDType("F32", "float32", np.dtype("<f4"), 23),
    TensorDType("F16", "float16", np.dtype("<f2"), 10),
    TensorDType("BF16", "bfloat16", np.dtype(ml_dtypes.bfloat16), 7),
    TensorDType("F8_E4M3", "float8_e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn), 3),
    TensorDType("F8_E5M2", "float8_e5m2", np.dtype(ml_dtypes.float8_e5m2), 2),
    TensorDType("I64", "int64", np.dtype("<i8")),
    TensorDType("I32", "int32", np.dtype("<i4")),
    TensorDType("I16", "int16", np.dtype("<i2")),
    TensorDType("I8", "int8", np.dtype("i1")),
    TensorDType("U64", "uint64", np.dtype("<u8")),
    TensorDType("U32", "uint32", np.dtype("<u4")),
    TensorDType("U16", "uint16", np.dtype("<u2")),
    TensorDType("U8", "uint8", np.dtype("u1")),
    TensorDType("BOOL", "bool", np.dtype("?")),
)

_BY_SAFETENSORS = {d.safetensors: d for d in DTYPES}
_BY_ZARR = {d.zarr: d for d in DTYPES}
_BY_NUMPY = {d.numpy: d for d in DTYPES}


def from_safetensors(name: str) -> TensorDType:
    """Look an element type up by its safetensors name; KeyError if it has no support."""
    return _BY_SAFETENSORS[name]


def from_zarr(name: str) -> TensorDType:
    """Look an element type up by its zarr name; KeyError if it has no support."""
    return _BY_ZARR[name]


def from_numpy(dtype: Any) -> TensorDType:
    """Look an element type up by its numpy dtype; KeyError if it has no support."""
    return _BY_NUMPY[np.dtype(dtype)]


def bits_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the unsigned integer dtype that is as wide as ``dtype``."""
    return np.dtype(f"<u{np.dtype(dtype).itemsize}")


def is_fitted(dtype: TensorDType) -> bool:
    """Tell whether weights of this type take part in fits (floating types of 16 bits and more)."""
    return dtype.is_float and dtype.itemsize >= 2
