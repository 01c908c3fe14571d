"""The zarr codec ``ckptlin.bit_pack``: small integers as bit planes and exceptions.

Specified in ``docs/store-format.md``.  zarr finds it by entry point; ckptlin's own reader and writer run the
same kernels fused with the step delta, without going through zarr's pipeline.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from ckptlin.kernels.bit_pack import NO_DELTA, pack, unpack
from ckptlin.store.codec_names import BIT_PACK, BIT_PACK_MAGIC

__all__ = ["BitPack"]


@dataclass(frozen=True)
class BitPack(ArrayBytesCodec):
    """Array-to-bytes codec of unsigned integers, which stands behind ``ckptlin.step_delta``."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's metadata; it has no configuration."""
        parse_named_configuration(data, BIT_PACK, require_configuration=False)
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        """Return the codec's metadata."""
        return {"name": BIT_PACK}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse an array that the codec is not defined for: one without dimensions.

        zarr names the array's own type here, not that of the integers which the step delta makes of it.
        """
        if not shape:
            raise ValueError(f"the codec {BIT_PACK} needs an array with at least one dimension")

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        bits: Any = np.ascontiguousarray(chunk_data.as_numpy_array())
        if bits.dtype.kind != "u":
            raise ValueError(
                f"the codec {BIT_PACK} stands behind ckptlin.step_delta, and is not for {bits.dtype}"
            )
        bits = bits.astype(bits.dtype.newbyteorder("<"), copy=False).reshape(bits.shape[0], -1)
        return chunk_spec.prototype.buffer.from_bytes(b"".join((BIT_PACK_MAGIC, *pack(bits, NO_DELTA))))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        data: Any = chunk_data.as_numpy_array().view(np.uint8)
        if data[: len(BIT_PACK_MAGIC)].tobytes() != BIT_PACK_MAGIC:
            raise ValueError(f"the chunk was not written by the codec {BIT_PACK}")
        bits: Any = np.empty(chunk_spec.shape, chunk_spec.dtype.to_native_dtype().newbyteorder("<"))
        unpack(data[len(BIT_PACK_MAGIC) :], bits.reshape(bits.shape[0], -1), NO_DELTA)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(bits)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: the size depends on the content."""
        raise NotImplementedError
