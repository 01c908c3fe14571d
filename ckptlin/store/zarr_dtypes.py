"""bfloat16 and float8 as zarr v3 data types.

zarr-python 3.1 has none of them.  The names are those that TensorStore uses, so that an array without codecs
of ours can be read there too.  They are found by zarr through entry points; nothing needs importing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.npy.common import float_from_json_v3, float_to_json_v3
from zarr.core.dtype.wrapper import ZDType

__all__ = ["BFloat16", "Float8E4M3FN", "Float8E5M2"]


@dataclass(frozen=True)
class _MLFloat(ZDType[Any, Any], HasEndianness, HasItemSize):
    """A floating type of `ml_dtypes`; zarr v3 only."""

    _zarr_v3_name: ClassVar[str]
    _scalar: ClassVar[type]

    @property
    def item_size(self) -> int:
        return np.dtype(self._scalar).itemsize

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """Wrap the numpy dtype; `DataTypeValidationError` if it is another one."""
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {cls._zarr_v3_name}")

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(dtype == np.dtype(cls._scalar))

    def to_native_dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype."""
        return np.dtype(self._scalar)

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError(f"zarr v2 has no {cls._zarr_v3_name}")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name!r}")

    def to_json(self, zarr_format: Any) -> Any:
        """Return the name of the data type."""
        if zarr_format == 3:
            return self._zarr_v3_name
        raise DataTypeValidationError(f"zarr v2 has no {self._zarr_v3_name}")

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.integer, np.floating, self._scalar))

    def cast_scalar(self, data: object) -> Any:
        """Convert a number to a scalar of the type; TypeError if it is none."""
        if self._check_scalar(data):
            return self._scalar(data)
        raise TypeError(f"cannot convert {data!r} to {self._zarr_v3_name}")

    def default_scalar(self) -> Any:
        """Return zero."""
        return self._scalar(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """Read a fill value: a number, or the string of a non-finite one."""
        return self._scalar(float_from_json_v3(data))

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> Any:
        """Write a fill value."""
        return float_to_json_v3(float(data))  # type: ignore[arg-type]


@dataclass(frozen=True)
class BFloat16(_MLFloat):
    """The zarr data type ``bfloat16``, in memory ``ml_dtypes.bfloat16``."""

    _zarr_v3_name: ClassVar[str] = "bfloat16"
    _scalar: ClassVar[type] = ml_dtypes.bfloat16
    dtype_cls: ClassVar[Any] = type(np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True)
class Float8E4M3FN(_MLFloat):
    """The zarr data type ``float8_e4m3fn``."""

    _zarr_v3_name: ClassVar[str] = "float8_e4m3fn"
    _scalar: ClassVar[type] = ml_dtypes.float8_e4m3fn
    dtype_cls: ClassVar[Any] = type(np.dtype(ml_dtypes.float8_e4m3fn))


@dataclass(frozen=True)
class Float8E5M2(_MLFloat):
    """The zarr data type ``float8_e5m2``."""

    _zarr_v3_name: ClassVar[str] = "float8_e5m2"
    _scalar: ClassVar[type] = ml_dtypes.float8_e5m2
    dtype_cls: ClassVar[Any] = type(np.dtype(ml_dtypes.float8_e5m2))
