"""A chunk's bytes to bits and back: step delta, a compressor, crc32c.

The same bytes as zarr's pipeline makes of the codecs in the array's metadata (a test holds that), without its
copies and its event loop.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from ckptlin.dtypes import TensorDType, bits_dtype
from ckptlin.errors import CorruptChunkError
from ckptlin.kernels.step_delta import delta_decode, delta_encode
from ckptlin.store.step_delta import CODEC_NAME, order_kind

__all__ = [
    "COMPRESSORS",
    "BloscCompressor",
    "Compressor",
    "PcodecCompressor",
    "compressor_from_dict",
    "decode_chunk",
    "decode_plain",
    "encode_chunk",
    "encode_plain",
]

_CRC_BYTES = 4
# Blosc 1 has a header of 16 bytes; the size of its content stands in bytes 4 to 7.  pcodec makes 18 or more.
_MIN_BODY_BYTES = 16
# How a chunk of pcodec's begins; blosc's begin with the number of its format, 2.
_PCODEC_MAGIC = b"pco!"
# The page that numcodecs chooses; a quarter or four times as much makes chunks 0.3% larger or 0.1% smaller.
_PCODEC_PAGE_VALUES = 1 << 18


class Compressor(Protocol):
    """What turns the bits of a chunk into fewer bytes.  A chunk says itself how it is decompressed."""

    @property
    def name(self) -> str:
        """What it is called by users."""

    def codecs(self, dtype: TensorDType, *, delta: bool) -> list[dict[str, Any]]:
        """Return the ``codecs`` of an array's metadata, with the step delta or without."""

    def compress(self, bits: np.ndarray[Any, Any]) -> bytes:
        """Compress C-contiguous bits of any shape; no checksum."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a store's record says of it; undone by `compressor_from_dict`."""


@dataclass(frozen=True, slots=True)
class BloscCompressor:
    """A compressor of blosc's, its level and its shuffle."""

    cname: str
    clevel: int
    shuffle: str = "bitshuffle"

    @property
    def name(self) -> str:
        """``lz4`` or ``zstd``."""
        return self.cname

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

    def compress(self, bits: np.ndarray[Any, Any]) -> bytes:
        """Compress bits; the same bytes every time.

        zarr, imported above, turns off blosc's own threads, which append their blocks in the order in which
        they finish.
        """
        shuffle = {"bitshuffle": blosc.BITSHUFFLE, "noshuffle": blosc.NOSHUFFLE}[self.shuffle]
        body: bytes = blosc.compress(bits.reshape(-1), self.cname.encode(), self.clevel, shuffle, 0)
        return body

    def to_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PcodecCompressor:
    """pcodec behind the step delta, which leaves it nothing to model: no mode and no delta of its own.

    Attributes
    ----------
    clevel : int
        pcodec's level, 0 to 12.
    page_values : int
        Numbers that a page of pcodec's holds at most.
    one_byte : BloscCompressor
        For types of one byte, which pcodec does not take.
    """

    clevel: int
    one_byte: BloscCompressor
    page_values: int = _PCODEC_PAGE_VALUES

    @property
    def name(self) -> str:
        """``archive``."""
        return "archive"

    def codecs(self, dtype: TensorDType, *, delta: bool) -> list[dict[str, Any]]:
        """Return the ``codecs`` of an array's metadata.

        Raises
        ------
        ValueError
            Without the delta: zarr would then give pcodec floating numbers, or a type that it does not know.
        """
        if not delta:
            raise ValueError("pcodec stands behind the step delta only")
        if dtype.itemsize == 1:
            return self.one_byte.codecs(dtype, delta=delta)
        pcodec_codec = {
            "name": "numcodecs.pcodec",
            "configuration": {
                "level": self.clevel,
                "mode_spec": "classic",
                "delta_spec": "none",
                "paging_spec": "equal_pages_up_to",
                "equal_pages_up_to": self.page_values,
            },
        }
        return [{"name": CODEC_NAME}, pcodec_codec, {"name": "crc32c"}]

    def compress(self, bits: np.ndarray[Any, Any]) -> bytes:
        """Compress bits; takes up to twice their size beside them (random bits), of real weights a third."""
        if bits.itemsize == 1:
            return self.one_byte.compress(bits)
        config = ChunkConfig(
            compression_level=self.clevel,
            mode_spec=ModeSpec.classic(),
            delta_spec=DeltaSpec.none(),
            paging_spec=PagingSpec.equal_pages_up_to(self.page_values),
        )
        body: bytes = standalone.simple_compress(bits.reshape(-1), config)
        return body

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, under ``cname`` ``pcodec``."""
        return {"cname": "pcodec", **asdict(self)}


def compressor_from_dict(found: Mapping[str, Any]) -> Compressor:
    """Undo a compressor's ``to_dict``; TypeError or KeyError if fields are missing or unknown."""
    if found["cname"] != "pcodec":
        return BloscCompressor(**found)
    fields = {name: value for name, value in found.items() if name != "cname"}
    return PcodecCompressor(**{**fields, "one_byte": BloscCompressor(**found["one_byte"])})


_ZSTD = BloscCompressor("zstd", 1)
# Measured on one core, bf16 trajectories, 14 steps, 28% changed (docs/store-format.md).
COMPRESSORS: dict[str, Compressor] = {
    "lz4": BloscCompressor("lz4", 5),
    "zstd": _ZSTD,
    # Of float8 zstd-5 makes no less than zstd-1, and takes four times as long.
    "archive": PcodecCompressor(8, one_byte=_ZSTD),
}


def encode_plain(bits: np.ndarray[Any, Any], compressor: Compressor) -> bytes:
    """Compress C-contiguous bits of any shape and append the checksum; the same bytes every time."""
    body = compressor.compress(bits)
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
        If the checksum fails, or the chunk has another size or cannot be decompressed; ``what`` names it in the
        message.
    """
    body = memoryview(data)[:-_CRC_BYTES]
    checksum = int.from_bytes(data[-_CRC_BYTES:], "little")
    if (
        len(data) < _MIN_BODY_BYTES + _CRC_BYTES
        or google_crc32c.value(np.frombuffer(body, np.uint8)) != checksum
    ):
        raise CorruptChunkError(
            f"{what} is corrupted: its crc32c checksum does not match; "
            "restore the file, or ingest the run into a new store"
        )
    if data.startswith(_PCODEC_MAGIC):
        _decompress_pcodec(data, out, what)
    else:
        _decompress_blosc(body, out, what)


def _decompress_blosc(body: memoryview, out: np.ndarray[Any, Any], what: str) -> None:
    num_bytes = int.from_bytes(body[4:8], "little")
    if num_bytes != out.nbytes:
        raise CorruptChunkError(f"{what} holds {num_bytes} bytes where {out.nbytes} were expected")
    blosc.decompress(body, out.view(np.uint8))


def _decompress_pcodec(data: bytes, out: np.ndarray[Any, Any], what: str) -> None:
    # pcodec takes bytes alone, and reads none behind its own end: with the checksum, they need no copy.
    bits = out.reshape(-1).view(bits_dtype(out.dtype))
    try:
        progress = standalone.simple_decompress_into(data, bits)
    except (RuntimeError, TypeError) as error:  # damage, and numbers of another type
        raise CorruptChunkError(
            f"{what} is corrupted: {error}; restore the file, or ingest the run into a new store"
        ) from error
    num_bytes = progress.n_processed * bits.itemsize
    if num_bytes != out.nbytes or not progress.finished:
        found = f"{num_bytes} bytes" if progress.finished else f"more than {num_bytes} bytes"
        raise CorruptChunkError(f"{what} holds {found} where {out.nbytes} were expected")


def decode_chunk(data: bytes, dtype: TensorDType, out: np.ndarray[Any, Any], what: str) -> None:
    """Undo `encode_chunk` into ``out``, ``(chunk steps, chunk parameters)`` of the bits dtype."""
    decode_plain(data, out, what)
    delta_decode(out, order_kind(dtype.numpy))
