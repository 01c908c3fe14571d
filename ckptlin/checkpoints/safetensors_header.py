"""The header of one safetensors file: read and checked without touching a weight, and built anew.

A file is 8 bytes (the header's length, little-endian), the JSON header, and the tensors' bytes one after
another.  Every rule of the format that guards against a misread is checked here: no duplicate keys, no gap,
no overlap, sizes that follow from shape and dtype, and an end that is the file's end.  Which files make up a
checkpoint is the business of `model_files`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptlin.checkpoints.base import WeightFile
from ckptlin.checkpoints.locations import Location, UrlPath
from ckptlin.checkpoints.open_files import read_fully
from ckptlin.dtypes import DTYPES, from_safetensors
from ckptlin.errors import IncompleteCheckpointError, InputError, MalformedCheckpointError
from ckptlin.trajectory import TensorSpec

__all__ = [
    "MAX_HEADER_BYTES",
    "SafetensorsHeader",
    "build_header",
    "library_order",
    "parse_header",
    "read_header",
]

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_LENGTH_BYTES = 8
# Fetched of a file at a URL in one request, in the hope that it holds the header.
_HEAD_BYTES = 1 << 17
_MAX_SIZE = 1 << 63  # of a dimension, and of a file on any system
_METADATA = "__metadata__"
# The order of safetensors' Dtype enum.  The library lays tensors out from its end, widest first, so that
# every tensor is aligned; equal types go by name.
_LIBRARY_ORDER = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16"),
    *("I32", "U32", "F32", "F64", "I64", "U64"),
)
_LIBRARY_RANK = {name: rank for rank, name in enumerate(_LIBRARY_ORDER)}
_LFS_POINTER = b"version "


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file holds, and where.

    Attributes
    ----------
    raw : bytes
        The JSON header as it lies in the file, padding included, the 8-byte length not.
    metadata : mapping of str to str, or None
        The header's ``__metadata__``; None if it has none.
    tensors : mapping of str to TensorSpec
        In the order of offsets.
    offsets : mapping of str to int
        Each tensor's first byte, counted from the beginning of the file.
    """

    raw: bytes
    metadata: Mapping[str, str] | None
    tensors: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]

    @property
    def data_start(self) -> int:
        """First byte after the header."""
        return _LENGTH_BYTES + len(self.raw)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_start + sum(spec.num_bytes for spec in self.tensors.values())

    @property
    def prefix(self) -> bytes:
        """The bytes before the first tensor: length and header."""
        return len(self.raw).to_bytes(_LENGTH_BYTES, "little") + self.raw


def read_header(path: Location) -> tuple[WeightFile, SafetensorsHeader]:
    """Read and check the header of a safetensors file; no other byte of the file is read.

    Raises
    ------
    IncompleteCheckpointError
        If the file vanished, is cut short, or has bytes after its last tensor.
    MalformedCheckpointError
        If the header breaks the format, or a tensor has a dtype without support.
    """
    try:
        num_bytes, mtime_ns, raw = _read_remote(path) if isinstance(path, UrlPath) else _read_local(path)
    except FileNotFoundError as error:
        raise IncompleteCheckpointError(
            f"{path} is missing: the checkpoint was deleted or is still being written; "
            "wait until it is complete, or leave it out"
        ) from error
    header = parse_header(raw, source=str(path))
    if header.file_bytes != num_bytes:
        found = "is cut short" if num_bytes < header.file_bytes else "has bytes after its last tensor"
        raise IncompleteCheckpointError(
            f"{path} {found}: its header describes a file of {header.file_bytes} bytes, but it has "
            f"{num_bytes}; save or download it again, or leave this checkpoint out"
        )
    return WeightFile(path.name, num_bytes, mtime_ns, raw), header


def parse_header(raw: bytes, *, source: str) -> SafetensorsHeader:
    """Check a JSON header and lay out its tensors.

    Parameters
    ----------
    raw : bytes
        The header without its length.
    source : str
        The file's path, for messages.

    Raises
    ------
    MalformedCheckpointError
        If the header is not a JSON object, holds a key twice, has offsets that overlap, leave a gap or
        disagree with shape and dtype, or names a dtype without support.
    """
    entries = _load_json(raw, source)
    metadata = entries.pop(_METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _malformed(source, "`__metadata__` is not a mapping of strings to strings")
    extents = sorted(
        (_parse_tensor(name, entry, source) for name, entry in entries.items()),
        key=lambda extent: extent[1:],
    )
    data_start = _LENGTH_BYTES + len(raw)
    tensors: dict[str, TensorSpec] = {}
    offsets: dict[str, int] = {}
    end = 0
    for spec, begin, stop in extents:
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            raise _malformed(source, f"tensor `{spec.name}` begins at byte {begin} instead of {end} and {what}")
        tensors[spec.name] = spec
        offsets[spec.name] = data_start + begin
        end = stop
    return SafetensorsHeader(
        raw,
        None if metadata is None else MappingProxyType(metadata),
        MappingProxyType(tensors),
        MappingProxyType(offsets),
    )


def build_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Build the header of a file that holds these tensors in this order, one after another.

    The bytes are those of the safetensors library: compact JSON, ``__metadata__`` first, padded with spaces
    so that the first tensor begins at a multiple of 8.  (The library's own order of tensors is
    `library_order`; the order of its metadata is random.)

    Raises
    ------
    InputError
        If a name occurs twice or is ``__metadata__``, or the header would exceed 100 MB.
    """
    entries: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    offset = 0
    for spec in specs:
        if spec.name in entries or spec.name == _METADATA:
            raise InputError(f"tensor name `{spec.name}` cannot be written: it is taken; rename the tensor")
        entries[spec.name] = {
            "dtype": spec.dtype.safetensors,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header = text + b" " * (-len(text) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise InputError(
            f"the header of {len(specs)} tensors takes {len(header)} bytes, more than safetensors' limit of "
            f"{MAX_HEADER_BYTES}; write more files with fewer tensors each"
        )
    return header


def library_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Sort tensors as the safetensors library lays them out: widest type first, then by name."""
    return sorted(specs, key=lambda spec: (-_LIBRARY_RANK[spec.dtype.safetensors], spec.name))


def _read_local(path: Path) -> tuple[int, int, bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(fd)
        return stat.st_size, stat.st_mtime_ns, _read_raw(partial(read_fully, fd), stat.st_size, path)
    finally:
        os.close(fd)


def _read_remote(path: UrlPath) -> tuple[int, int, bytes]:
    stat = path.stat()
    head = bytearray(min(stat.st_size, _HEAD_BYTES))
    del head[path.read_into(0, memoryview(head)) :]

    def read(offset: int, out: memoryview) -> int:
        if offset + len(out) > len(head):
            return path.read_into(offset, out)
        out[:] = head[offset : offset + len(out)]
        return len(out)

    return stat.st_size, stat.st_mtime_ns, _read_raw(read, stat.st_size, path)


def _read_raw(read: Callable[[int, memoryview], int], file_bytes: int, path: Location) -> bytes:
    if file_bytes < _LENGTH_BYTES:
        raise IncompleteCheckpointError(
            f"{path} has {file_bytes} bytes, too few for a safetensors file; it is still being written, or "
            "must be saved or downloaded again"
        )
    length = bytearray(_LENGTH_BYTES)
    read(0, memoryview(length))
    num_bytes = int.from_bytes(length, "little")
    if length == _LFS_POINTER:
        raise IncompleteCheckpointError(
            f"{path} is not the weights but a Git LFS pointer to them; fetch them with `git lfs pull`"
        )
    if num_bytes == 0:
        # What a file holds that was allocated but not written, for example when the machine went down.
        raise IncompleteCheckpointError(
            f"{path} begins with zeros where the length of its header should be; it is still being written, or "
            "must be saved again"
        )
    if num_bytes > MAX_HEADER_BYTES:
        raise MalformedCheckpointError(
            f"{path} claims a header of {num_bytes} bytes, but {MAX_HEADER_BYTES} is the limit; "
            "it is not a safetensors file, or is damaged: save or download it again"
        )
    if _LENGTH_BYTES + num_bytes > file_bytes:
        raise IncompleteCheckpointError(
            f"{path} is cut short inside its header: it has {file_bytes} bytes, and the header alone should "
            f"take {_LENGTH_BYTES + num_bytes}; save or download it again, or leave this checkpoint out"
        )
    raw = bytearray(num_bytes)
    if read(_LENGTH_BYTES, memoryview(raw)) < num_bytes:
        raise IncompleteCheckpointError(
            f"{path} was cut short while its header was read; leave this checkpoint out, or wait for it"
        )
    return bytes(raw)


def _malformed(source: str, what: str) -> MalformedCheckpointError:
    return MalformedCheckpointError(
        f"{source} has a header that breaks the safetensors format: {what}; save or download the file again"
    )


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        key = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise _DuplicateKeyError(key)
    return result


def _load_json(raw: bytes, source: str) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _malformed(source, f"it begins with {raw[:8]!r} instead of {{")
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        for name in entries:
            name.encode()  # JSON can spell lone surrogates, which no file name or message can hold
    except _DuplicateKeyError as error:
        raise _malformed(source, f"the key `{error}` occurs twice") from error
    except (ValueError, RecursionError) as error:
        raise _malformed(source, f"it is not valid JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _malformed(source, "it is not a JSON object")
    return entries


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE


def _parse_tensor(name: str, entry: Any, source: str) -> tuple[TensorSpec, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _malformed(source, f"tensor `{name}` lacks its dtype, shape or data_offsets")
    shape, extent = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _malformed(source, f"tensor `{name}` has the shape {shape!r}, not a list of sizes")
    if not isinstance(extent, list) or len(extent) != 2 or not all(map(_is_size, extent)):
        raise _malformed(source, f"tensor `{name}` has the data_offsets {extent!r}, not two positions")
    try:
        dtype = from_safetensors(entry["dtype"])
    except (KeyError, TypeError) as error:
        readable = ", ".join(d.safetensors for d in DTYPES)
        raise MalformedCheckpointError(
            f"tensor `{name}` in {source} has dtype {entry['dtype']}, but ckptlin reads only {readable}; "
            "convert the checkpoint to one of these first"
        ) from error
    spec = TensorSpec(name, dtype, tuple(shape))
    begin, stop = extent
    if stop - begin != spec.num_bytes:
        # A product of absurd sizes can have more digits than Python agrees to print.
        takes = f"takes {spec.num_bytes} bytes" if spec.num_bytes < _MAX_SIZE else "is larger than any file"
        raise _malformed(
            source,
            f"tensor `{name}` of shape {spec.shape} and dtype {dtype.safetensors} {takes}, "
            f"but its offsets span {stop - begin}",
        )
    return spec, begin, stop
