"""A chunk's bytes to bits and back: step delta, bitshuffle and a compressor, crc32c.

The same bytes as zarr's pipeline makes of the codecs in the array's metadata (a test holds that), without its
copies and its event loop.
"""

from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from ckptlin.dtypes import TensorDType
from ckptlin.errors import CorruptChunkError
from ckptlin.kernels.step_delta import delta_decode, delta_encode
from ckptlin.store.step_delta import CODEC_NAME, order_kind

__all__ = ["COMPRESSORS", "Compressor", "decode_chunk", "decode_plain", "encode_chunk", "encode_plain"]

_CRC_BYTES = 4
# A blosc 1 buffer begins with 16 bytes; the size of its content stands in bytes 4 to 7.
_BLOSC_HEADER_BYTES = 16


@dataclass(frozen=True, slots=True)
class Compressor:
    """A blosc compressor, its level and its shuffle."""

    cname: str
    clevel: int
    shuffle: str = "bitshuffle"

    def codecs(self, dtype: TensorDType, *, delta: bool) -> list[dict[str, Any]]:
        """Return the ``codecs`` of an array's metadata."""
        bytes_codec: dict[str, Any] = {"name": "bytes"}
        if dtype.itemsize > 1:
            bytes_codec["configuration"] = {"endian": "little"}
        blosc_codec = {
            "name": "blosc",
            "configuration": {
                "typesize": dtype.itemsize,
                "cname": self.cname,
                "clevel": self.clevel,
                "shuffle": self.shuffle,
                "blocksize": 0,
            },
        }
        first = [{"name": CODEC_NAME}] if delta else []
        return [*first, bytes_codec, blosc_codec, {"name": "crc32c"}]


# Measured on one core, bf16 trajectories, 14 steps, 28% changed (docs/store-format.md).
COMPRESSORS = {"lz4": Compressor("lz4", 5), "zstd": Compressor("zstd", 1)}


def encode_plain(bits: np.ndarray[Any, Any], compressor: Compressor) -> bytes:
    """Compress C-contiguous bits of any shape and append the checksum.

    The same bytes every time: zarr, imported above, turns off blosc's own threads, which append their blocks in
    the order in which they finish.
    """
    shuffle = {"bitshuffle": blosc.BITSHUFFLE, "noshuffle": blosc.NOSHUFFLE}[compressor.shuffle]
    body: bytes = blosc.compress(bits.reshape(-1), compressor.cname.encode(), compressor.clevel, shuffle, 0)
    checksum: int = google_crc32c.value(body)
    return body + checksum.to_bytes(_CRC_BYTES, "little")


def encode_chunk(bits: np.ndarray[Any, Any], dtype: TensorDType, compressor: Compressor) -> bytes:
    """Encode a chunk.

    Parameters
    ----------
    bits : numpy.ndarray
        ``(chunk steps, chunk parameters)`` of the bits dtype; overwritten.
    """
    delta_encode(bits, order_kind(dtype.numpy))
    return encode_plain(bits, compressor)


def decode_plain(data: bytes, out: np.ndarray[Any, Any], what: str) -> None:
    """Undo `encode_plain` into C-contiguous ``out``.

    Raises
    ------
    CorruptChunkError
        If the checksum fails or the chunk has another size; ``what`` names it in the message.
    """
    array = np.frombuffer(data, np.uint8)
    body = array[:-_CRC_BYTES]
    checksum = int.from_bytes(data[-_CRC_BYTES:], "little")
    if len(data) < _BLOSC_HEADER_BYTES + _CRC_BYTES or google_crc32c.value(body) != checksum:
        raise CorruptChunkError(
            f"{what} is corrupted: its crc32c checksum does not match; "
            "restore the file, or ingest the run into a new store"
        )
    num_bytes = int.from_bytes(data[4:8], "little")
    if num_bytes != out.nbytes:
        raise CorruptChunkError(f"{what} holds {num_bytes} bytes where {out.nbytes} were expected")
    blosc.decompress(body, out.view(np.uint8))


def decode_chunk(data: bytes, dtype: TensorDType, out: np.ndarray[Any, Any], what: str) -> None:
    """Undo `encode_chunk` into ``out``, ``(chunk steps, chunk parameters)`` of the bits dtype."""
    decode_plain(data, out, what)
    delta_decode(out, order_kind(dtype.numpy))
