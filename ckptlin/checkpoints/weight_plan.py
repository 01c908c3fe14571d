"""Which files a checkpoint will be written to, and the header of each, before a weight is computed.

The source's division into files is kept unless a maximum size asks for another; a file whose tensors stay as
they are keeps its header byte for byte.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ckptlin.checkpoints.model_files import SINGLE_NAME
from ckptlin.checkpoints.safetensors_header import SafetensorsHeader, build_header, library_order, parse_header
from ckptlin.errors import InputError
from ckptlin.naming import is_buffer
from ckptlin.trajectory import TensorSpec

__all__ = ["WeightFilePlan", "index_json", "plan_files"]

_FORMAT = {"format": "pt"}  # transformers 4 refuses a file whose metadata lack it


@dataclass(frozen=True)
class WeightFilePlan:
    """A file of weights to be written.

    Attributes
    ----------
    name : str
        File name inside the checkpoint's directory.
    header : bytes
        The JSON header without its length, as in `WeightFile`.
    """

    name: str
    header: bytes

    @cached_property
    def layout(self) -> SafetensorsHeader:
        """The parsed header: tensors and their offsets.

        Raises
        ------
        MalformedCheckpointError
            If the header breaks the format.
        """
        return parse_header(self.header, source=self.name)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.layout.file_bytes


def plan_files(
    specs: Sequence[TensorSpec],
    file_of: Mapping[str, str],
    *,
    source_headers: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> tuple[WeightFilePlan, ...]:
    """Divide tensors into files.

    Parameters
    ----------
    specs : sequence of TensorSpec
        What to write, in the order of the source's files; dtypes may differ from the source's.
    file_of : mapping of str to str
        The source's file of each tensor; not used with ``max_shard_bytes``.
    source_headers : mapping of str to bytes, optional
        The source's headers by file name.  A file with exactly its source's tensors, shapes and dtypes gets
        the same header, byte for byte; any other keeps its source's metadata (``format`` is added where
        it is missing), with its tensors in the safetensors library's order.
    metadata : mapping of str to str, optional
        ``__metadata__`` of files whose source has no header in ``source_headers``; default
        ``{"format": "pt"}``.
    max_shard_bytes : int, optional
        Largest size of a file's tensors, in bytes.  Tensors are taken in order, as transformers does it; one
        that is larger has a file of its own.  Default: the source's division.

    Returns
    -------
    tuple of WeightFilePlan
        Sorted by name.

    Raises
    ------
    InputError
        If a tensor has no file in ``file_of``, or ``max_shard_bytes`` is not positive.
    """
    headers = {
        name: parse_header(raw, source=f"the header of {name}") for name, raw in (source_headers or {}).items()
    }
    fallback = _FORMAT if metadata is None else metadata
    if max_shard_bytes is None:
        groups: dict[str, list[TensorSpec]] = {}
        for spec in specs:
            if spec.name not in file_of:
                raise InputError(f"tensor `{spec.name}` has no file to be written to; name one in `file_of`")
            groups.setdefault(file_of[spec.name], []).append(spec)
    else:
        groups = _name_shards(_shard(specs, max_shard_bytes))
        # Files no longer correspond to the source's: what any of them recorded (tied names) goes into all.
        recorded = {k: v for header in headers.values() for k, v in (header.metadata or {}).items()}
        fallback = {**fallback, **recorded}
        headers = {
            name: header
            for name, header in headers.items()
            if groups.get(name) == list(header.tensors.values())
        }
    return tuple(_plan_file(name, groups[name], headers.get(name), fallback) for name in sorted(groups))


def index_json(plans: Iterable[WeightFilePlan]) -> bytes:
    """Build ``model.safetensors.index.json``, with the bytes that transformers writes.

    ``total_parameters`` counts what is not a buffer by its name.
    """
    located = sorted((spec.name, plan.name, spec) for plan in plans for spec in plan.layout.tensors.values())
    content = {
        "metadata": {
            "total_parameters": sum(spec.num_params for name, _, spec in located if not is_buffer(name)),
            "total_size": sum(spec.num_bytes for _, _, spec in located),
        },
        "weight_map": {name: file for name, file, _ in located},
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _plan_file(
    name: str, specs: Sequence[TensorSpec], source: SafetensorsHeader | None, metadata: Mapping[str, str]
) -> WeightFilePlan:
    if source is None:
        return WeightFilePlan(name, build_header(library_order(specs), metadata))
    if {spec.name: spec for spec in specs} == dict(source.tensors):
        return WeightFilePlan(name, source.raw)
    return WeightFilePlan(name, build_header(library_order(specs), {**_FORMAT, **(source.metadata or {})}))


def _shard(specs: Sequence[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    if max_shard_bytes <= 0:
        raise InputError(f"the largest size of a shard must be positive, not {max_shard_bytes} bytes")
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    current_bytes = 0
    for spec in specs:
        if spec.num_bytes > max_shard_bytes:
            shards.append([spec])
            continue
        if current_bytes + spec.num_bytes > max_shard_bytes:
            shards.append(current)
            current, current_bytes = [], 0
        current.append(spec)
        current_bytes += spec.num_bytes
    return [*shards, current] if current else shards


def _name_shards(shards: Sequence[list[TensorSpec]]) -> dict[str, list[TensorSpec]]:
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}
