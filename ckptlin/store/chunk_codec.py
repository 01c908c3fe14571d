"""A chunk's bytes to bits and back: step delta, a compressor, crc32c.

The same bytes as zarr's pipeline makes of the codecs in the array's metadata (a test holds that), without its
copies and its event loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

import google_crc32c
import numpy as np
from numcodecs import blosc
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone

from ckptlin.dtypes import TensorDType, bits_dtype
from ckptlin.errors import CorruptChunkError
from ckptlin.kernels.bit_pack import NO_DELTA, pack, unpack
from ckptlin.kernels.step_delta import delta_decode, delta_encode
from ckptlin.store.codec_names import BIT_PACK, BIT_PACK_MAGIC, STEP_DELTA, order_kind

__all__ = [
    "COMPRESSORS",
    "BitPackCompressor",
    "BloscCompressor",
    "Compressor",
    "PcodecCompressor",
    "compressor_from_dict",
    "decode_chunk",
    "decode_plain",
    "encode_chunk",
    "encode_plain",
    "packed_body",
]

_CRC_BYTES = 4
# Blosc 1 has a header of 16 bytes; the size of its content stands in bytes 4 to 7.  pcodec makes 18 or more.
_MIN_BODY_BYTES = 16
# How a chunk of pcodec's begins; blosc's begin with the number of its format, 2.
_PCODEC_MAGIC = b"pco!"
# The page that numcodecs chooses; a quarter or four times as much makes chunks 0.3% larger or 0.1% smaller.
_PCODEC_PAGE_VALUES = 1 << 18

# blosc's own threads append their blocks in the order in which they finish.  (zarr turns them off as well.)
blosc.use_threads = False

# What a compressor makes: bytes to be written one after the other.
Parts: TypeAlias = Sequence[bytes | memoryview]


class Compressor(Protocol):
    """What turns the bits of a chunk into fewer bytes.  A chunk says itself how it is decompressed."""

    @property
    def name(self) -> str:
        """What it is called by users."""

    def codecs(self, dtype: TensorDType, *, delta: bool) -> list[dict[str, Any]]:
        """Return the ``codecs`` of an array's metadata, with the step delta or without."""

    def compress(self, bits: np.ndarray[Any, Any]) -> Parts:
        """Compress C-contiguous bits of any shape; no checksum."""

    def compress_steps(self, bits: np.ndarray[Any, Any], kind: int) -> Parts:
        """Apply the step delta and compress; ``(steps, parameters)``, overwritten."""
        delta_encode(bits, kind)
        return self.compress(bits)

    def to_dict(self) -> dict[str, Any]:
        """Return what a store's record says of it; undone by `compressor_from_dict`."""


@dataclass(frozen=True, slots=True)
class BitPackCompressor(Compressor):
    """Bit planes and exceptions, fused with the step delta: the default."""

    @property
    def name(self) -> str:
        """``pack``."""
        return "pack"

    def codecs(self, dtype: TensorDType, *, delta: bool) -> list[dict[str, Any]]:
        """Return the ``codecs`` of an array's metadata.

        Raises
        ------
        ValueError
            Without the delta: zarr would then give the codec floating numbers.
        """
        if not delta:
            raise ValueError("bit planes stand behind the step delta only")
        return [{"name": STEP_DELTA}, {"name": BIT_PACK}, {"name": "crc32c"}]

    def compress(self, bits: np.ndarray[Any, Any]) -> Parts:
        """Pack bits, the first axis of which counts the steps."""
        return (BIT_PACK_MAGIC, *pack(bits.reshape(len(bits), -1), NO_DELTA))

    def compress_steps(self, bits: np.ndarray[Any, Any], kind: int) -> Parts:
        """Apply the step delta and pack, in one pass; the bits stay as they are."""
        return (BIT_PACK_MAGIC, *pack(bits, kind))

    def to_dict(self) -> dict[str, Any]:
        """Return its name as ``cname``."""
        return {"cname": self.name}


@dataclass(frozen=True, slots=True)
class BloscCompressor(Compressor):
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
        first = [{"name": STEP_DELTA}] if delta else []
        return [*first, bytes_codec, blosc_codec, {"name": "crc32c"}]

    def compress(self, bits: np.ndarray[Any, Any]) -> Parts:
        """Compress bits; the same bytes every time."""
        shuffle = {"bitshuffle": blosc.BITSHUFFLE, "noshuffle": blosc.NOSHUFFLE}[self.shuffle]
        return (blosc.compress(bits.reshape(-1), self.cname.encode(), self.clevel, shuffle, 0),)

    def to_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PcodecCompressor(Compressor):
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
        return [{"name": STEP_DELTA}, pcodec_codec, {"name": "crc32c"}]

    def compress(self, bits: np.ndarray[Any, Any]) -> Parts:
        """Compress bits; takes up to twice their size beside them (random bits), of real weights a third."""
        if bits.itemsize == 1:
            return self.one_byte.compress(bits)
        config = ChunkConfig(
            compression_level=self.clevel,
            mode_spec=ModeSpec.classic(),
            delta_spec=DeltaSpec.none(),
            paging_spec=PagingSpec.equal_pages_up_to(self.page_values),
        )
        return (standalone.simple_compress(bits.reshape(-1), config),)

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, under ``cname`` ``pcodec``."""
        return {"cname": "pcodec", **asdict(self)}


def compressor_from_dict(found: Mapping[str, Any]) -> Compressor:
    """Undo a compressor's ``to_dict``; TypeError or KeyError if fields are missing or unknown."""
    if found["cname"] == "pack":
        return BitPackCompressor()
    if found["cname"] != "pcodec":
        return BloscCompressor(**found)
    fields = {name: value for name, value in found.items() if name != "cname"}
    return PcodecCompressor(**{**fields, "one_byte": BloscCompressor(**found["one_byte"])})


_ZSTD = BloscCompressor("zstd", 1)
# Measured on one core, bf16 trajectories, 14 steps, 28% changed (docs/store-format.md).
COMPRESSORS: dict[str, Compressor] = {
    "pack": BitPackCompressor(),
    "lz4": BloscCompressor("lz4", 5),
    "zstd": _ZSTD,
    # Of float8 zstd-5 makes no less than zstd-1, and takes four times as long.
    "archive": PcodecCompressor(8, one_byte=_ZSTD),
}


def _with_checksum(parts: Parts) -> bytes:
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, np.frombuffer(part, np.uint8))
    return b"".join((*parts, checksum.to_bytes(_CRC_BYTES, "little")))


def encode_plain(bits: np.ndarray[Any, Any], compressor: Compressor) -> bytes:
    """Compress C-contiguous bits of any shape and append the checksum; the same bytes every time."""
    return _with_checksum(compressor.compress(bits))


def encode_chunk(bits: np.ndarray[Any, Any], dtype: TensorDType, compressor: Compressor) -> bytes:
    """Encode a chunk.

    Parameters
    ----------
    bits : numpy.ndarray
        ``(chunk steps, chunk parameters)`` of the bits dtype; overwritten.
    """
    return _with_checksum(compressor.compress_steps(bits, order_kind(dtype.numpy)))


def decode_plain(data: bytes, out: np.ndarray[Any, Any], what: str) -> None:
    """Undo `encode_plain` into C-contiguous ``out``.

    Raises
    ------
    CorruptChunkError
        If the checksum fails, or the chunk has another size or cannot be decompressed; ``what`` names it in the
        message.
    """
    _check(data, what)
    if data.startswith(BIT_PACK_MAGIC):
        _unpack(data, out.reshape(len(out), -1).view(bits_dtype(out.dtype)), NO_DELTA, what)
    elif data.startswith(_PCODEC_MAGIC):
        _decompress_pcodec(data, out, what)
    else:
        _decompress_blosc(memoryview(data)[:-_CRC_BYTES], out, what)


def _corrupt(what: str, reason: object) -> CorruptChunkError:
    return CorruptChunkError(
        f"{what} is corrupted: {reason}; restore the file, or ingest the run into a new store"
    )


def _check(data: bytes, what: str) -> None:
    checksum = int.from_bytes(data[-_CRC_BYTES:], "little")
    if (
        len(data) < _MIN_BODY_BYTES + _CRC_BYTES
        or google_crc32c.value(np.frombuffer(data, np.uint8)[:-_CRC_BYTES]) != checksum
    ):
        raise _corrupt(what, "its crc32c checksum does not match")


def _unpack(data: bytes, out: np.ndarray[Any, Any], kind: int, what: str) -> None:
    try:
        unpack(np.frombuffer(data, np.uint8)[len(BIT_PACK_MAGIC) : -_CRC_BYTES], out, kind)
    except ValueError as error:
        raise _corrupt(what, error) from error


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
        raise _corrupt(what, error) from error
    num_bytes = progress.n_processed * bits.itemsize
    if num_bytes != out.nbytes or not progress.finished:
        found = f"{num_bytes} bytes" if progress.finished else f"more than {num_bytes} bytes"
        raise CorruptChunkError(f"{what} holds {found} where {out.nbytes} were expected")


def packed_body(data: bytes, what: str) -> np.ndarray[Any, Any] | None:
    """Check a chunk, and return what `bit_pack.pack` made, uint8; None if it was compressed otherwise."""
    if not data.startswith(BIT_PACK_MAGIC):
        return None
    _check(data, what)
    return np.frombuffer(data, np.uint8)[len(BIT_PACK_MAGIC) : -_CRC_BYTES]


def decode_chunk(data: bytes, dtype: TensorDType, out: np.ndarray[Any, Any], what: str) -> None:
    """Undo `encode_chunk` into ``out``, ``(chunk steps, chunk parameters)`` of the bits dtype."""
    kind = order_kind(dtype.numpy)
    if data.startswith(BIT_PACK_MAGIC):
        _check(data, what)
        _unpack(data, out, kind, what)
        return
    decode_plain(data, out, what)
    delta_decode(out, kind)
