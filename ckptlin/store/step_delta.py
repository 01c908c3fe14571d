"""The zarr codec ``ckptlin.step_delta``: differences along the first axis, exactly reversible.

Specified in ``docs/store-format.md``.  zarr finds it by entry point; ckptlin's own reader and writer apply the
same kernels to whole blocks without going through zarr's pipeline.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayArrayCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.common import JSON, parse_named_configuration
from zarr.core.dtype import get_data_type_from_native_dtype

from ckptlin.dtypes import DTYPES, bits_dtype
from ckptlin.kernels.step_delta import delta_decode, delta_encode
from ckptlin.store.codec_names import STEP_DELTA, order_kind

__all__ = ["StepDelta"]


@dataclass(frozen=True)
class StepDelta(ArrayArrayCodec):
    """Array-to-array codec: each row becomes its zigzag-coded difference to the row after it."""

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's metadata; it has no configuration."""
        parse_named_configuration(data, STEP_DELTA, require_configuration=False)
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        """Return the codec's metadata."""
        return {"name": STEP_DELTA}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse an array that the codec is not defined for: one without dimensions, or of another dtype."""
        native = dtype.to_native_dtype()
        if native.newbyteorder("<") not in {d.numpy for d in DTYPES}:
            raise ValueError(f"the codec {STEP_DELTA} is not defined for arrays of {native}")
        if not shape:
            raise ValueError(f"the codec {STEP_DELTA} needs an array with at least one dimension")

    def resolve_metadata(self, chunk_spec: ArraySpec) -> ArraySpec:
        """Tell the next codec that it gets unsigned integers."""
        bits = bits_dtype(chunk_spec.dtype.to_native_dtype())
        return replace(chunk_spec, dtype=get_data_type_from_native_dtype(bits), fill_value=bits.type(0))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer | None:
        # An array made in this process may be big-endian in memory; what is stored never is.
        dtype = chunk_spec.dtype.to_native_dtype().newbyteorder("<")
        values: Any = np.array(chunk_data.as_ndarray_like(), dtype, order="C", copy=True)
        bits = values.view(bits_dtype(dtype))
        delta_encode(bits.reshape(bits.shape[0], -1), order_kind(dtype))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(bits)

    async def _decode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype = chunk_spec.dtype.to_native_dtype()
        bits: Any = np.array(chunk_data.as_ndarray_like(), order="C", copy=True)
        delta_decode(bits.reshape(bits.shape[0], -1), order_kind(dtype))
        values = bits.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(values)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Return the same size: the codec keeps shape and width."""
        return input_byte_length
