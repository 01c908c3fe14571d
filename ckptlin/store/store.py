"""Reading a trajectory store."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from ckptlin.dtypes import from_zarr
from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    NotAStoreError,
    SelectionError,
    StaleFitError,
    StoreError,
)
from ckptlin.naming import encode_name
from ckptlin.segments import Jump
from ckptlin.store.chunk_codec import decode_chunk, decode_plain, packed_body
from ckptlin.store.layout import blocks_of
from ckptlin.store.metadata import (
    ROOT_KEY,
    CommittedCheckpoint,
    FitRecord,
    GramRecord,
    StoreRecord,
    table_chunk,
)
from ckptlin.store.url_files import open_files
from ckptlin.trajectory import Block, Buffer, TensorSpec
from ckptlin.urls import is_url

__all__ = [
    "GRAM",
    "STAGED_FITS",
    "STAGED_GRAM",
    "TrajectoryStore",
    "block_key",
    "chunk_key",
    "describe_steps",
    "fit_prefix",
]

# Where a fit grows before it commits.
STAGED_FITS = ".fits"
# Where the Gram matrices lie, and where they grow before they commit.
GRAM, STAGED_GRAM = "gram", ".gram"


def chunk_key(array: str, index: Sequence[int]) -> str:
    """Return the key of a chunk: ``c/0/3/0`` below its array, plain ``c`` for an array without dimensions."""
    return "/".join([array, "c", *map(str, index)])


def block_key(block: Block, chunk_row: int) -> str:
    """Return the key of the chunk that holds a block's rows from ``chunk_row * chunk_steps`` on."""
    return chunk_key(f"weights/{encode_name(block.tensor)}", (chunk_row, *block.index))


def fit_prefix(name: str) -> str:
    """Return the path of a fit's group."""
    return f"fits/{encode_name(name)}"


class TrajectoryStore:
    """The trajectories of a run, as committed: a `TrajectorySource` that is read chunk by chunk.

    Parameters
    ----------
    path : path-like
        Directory of the store, or a URL that fsspec reads, such as ``s3://bucket/run.store``.

    Raises
    ------
    NotAStoreError, StoreVersionError
    StoreError
        Also from any method, if a URL cannot be reached.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.files = open_files(path)
        self._generation = self.files.generation()
        is_local = not is_url(self.location)
        document = None if is_local and not self.path.is_dir() else self.files.read(ROOT_KEY)
        if document is None:
            what = _what_is_there(self.path) if is_local else "holds no trajectory store"
            raise NotAStoreError(f"{self.location} {what}; make a store with `ckptlin ingest RUN STORE`")
        try:
            parsed = json.loads(document)
        except ValueError as error:
            raise NotAStoreError(f"{self.files.where(ROOT_KEY)} is not valid JSON: {error}") from error
        self.record = StoreRecord.from_document(parsed, self.location)
        self._roots: dict[str, str] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store for reading."""
        return cls(path)

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} steps" if self.steps else "no steps"
        return f"<TrajectoryStore {self.location}: {steps}, {len(self.tensors)} tensors>"

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.files.where("")

    @property
    def path(self) -> Path:
        """Directory of the store; InputError if it lies at a URL."""
        if is_url(self.location):
            raise InputError(f"{self.location} is no directory; copy the store to a local disk first")
        return Path(self.location)

    @property
    def steps(self) -> tuple[int, ...]:
        """Committed steps, ascending."""
        return self.record.steps

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """Where training was skipped by extrapolation, among the steps; ascending."""
        return self.record.jumps

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in file order."""
        return {t.name: t for t in self.record.tensors}

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that are another name's tensor."""
        return self.record.tied

    @property
    def checkpoints(self) -> tuple[CommittedCheckpoint, ...]:
        """The ingested checkpoints, in the order of `steps`."""
        return self.record.checkpoints

    def blocks(self, tensor: str) -> tuple[Block, ...]:
        """List the blocks of a tensor, in ascending order."""
        return blocks_of(self.tensors[tensor], self.record.param_chunks[tensor])

    def chunk_params(self, tensor: str) -> int:
        """Number of parameters in a chunk of the tensor, padding included."""
        return int(np.prod(self.record.param_chunks[tensor], dtype=np.int64))

    def steps_of_row(self, chunk_row: int) -> tuple[int, ...]:
        """Return the committed steps that lie in a row of chunks."""
        size = self.record.chunk_steps
        return self.steps[chunk_row * size : (chunk_row + 1) * size]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.location, self.record.commit)

    def prefetch(self, block: Block, rows: Sequence[int]) -> None:
        """Tell the system that the chunks of a block will soon be read."""
        for chunk_row in {row // self.record.chunk_steps for row in rows}:
            self.files.prefetch(block_key(block, chunk_row))

    def read_chunk(self, block: Block, chunk_row: int, buffer: Buffer | None = None) -> np.ndarray[Any, Any]:
        """Read and decode one chunk, into ``buffer`` if one is given.

        Returns
        -------
        numpy.ndarray
            ``(chunk_steps, chunk parameters)`` of the bits dtype, padding included.

        Raises
        ------
        CorruptChunkError
            If the chunk is missing or damaged; names tensor, steps and file.
        """
        spec = self.tensors[block.tensor]
        data, what = self._read_encoded(block, chunk_row)
        shape = (self.record.chunk_steps, self.chunk_params(block.tensor))
        out = np.empty(shape, spec.dtype.bits) if buffer is None else buffer.array(shape, spec.dtype.bits)
        decode_chunk(data, spec.dtype, out, what)
        return out

    def read_packed(self, block: Block, chunk_row: int) -> np.ndarray[Any, Any] | None:
        """Read one chunk as it was packed, uint8, for kernels that unpack it themselves.

        None if it was compressed otherwise.

        Raises
        ------
        CorruptChunkError
            If the chunk is missing or its checksum fails; the kernel finds out what it holds.
        """
        return packed_body(*self._read_encoded(block, chunk_row))

    def _read_encoded(self, block: Block, chunk_row: int) -> tuple[bytes, str]:
        """Read a chunk's bytes; return them and what to call them in messages."""
        key = block_key(block, chunk_row)
        steps = _span(self.steps_of_row(chunk_row))
        data = self._read_key(key)
        if data is None:
            raise CorruptChunkError(
                f"the chunk of tensor `{block.tensor}` at steps {steps} is missing: "
                f"{self.files.where(key)}; restore the file, or ingest the run into a new store"
            )
        return data, f"the chunk of tensor `{block.tensor}` at steps {steps} ({self.files.where(key)})"

    def read_block(
        self, block: Block, rows: Sequence[int], buffer: Buffer | None = None
    ) -> np.ndarray[Any, Any]:
        """Read rows (indices into `steps`) of a block, ``(len(rows), num_params)`` of the bits dtype.

        C-contiguous; where a buffer is given, what is returned may lie in it.
        """
        size = self.record.chunk_steps
        if not rows:
            raise SelectionError(f"no steps of {self.location} were selected")
        if len({row // size for row in rows}) == 1:
            chunk = self.read_chunk(block, rows[0] // size, buffer)
            within = [row % size for row in rows]
            if within == list(range(within[0], within[0] + len(within))):
                return np.ascontiguousarray(chunk[within[0] : within[-1] + 1, : block.num_params])
            return np.ascontiguousarray(chunk[within, : block.num_params])
        out = np.empty((len(rows), block.num_params), self.tensors[block.tensor].dtype.bits)
        for chunk_row in sorted({row // size for row in rows}):
            chunk = self.read_chunk(block, chunk_row, buffer)
            for position, row in enumerate(rows):
                if row // size == chunk_row:
                    out[position] = chunk[row % size, : block.num_params]
        return out

    def read_blob(self, digest: str) -> bytes:
        """Return a file that the store keeps, by its hash."""
        out = np.empty(self.record.blobs[digest], np.uint8)
        if out.size:
            self._read_plain(chunk_key(f"files/{digest}", (0,)), out)
        return out.tobytes()

    def sidecars(self, step: int) -> dict[str, bytes]:
        """Return the sidecar files (configuration, tokenizer, …) of an ingested checkpoint."""
        checkpoint = self.checkpoints[self.row_of(step)]
        return {name: self.read_blob(digest) for name, digest in checkpoint.sidecars.items()}

    def row_of(self, step: int) -> int:
        """Return the index of a step; SelectionError if it is not in the store."""
        try:
            return self.steps.index(step)
        except ValueError:
            raise SelectionError(
                f"step {step} is not in {self.location}, which holds {describe_steps(self.steps)}"
            ) from None

    def fit_record(self, name: str = "default") -> FitRecord:
        """Return the record of a fit.

        Raises
        ------
        SelectionError
            If there is no fit of that name.
        StaleFitError
            If the checkpoints that it was computed from are not those in the store any more.
        """
        if name not in self.record.fits:
            there = ", ".join(sorted(self.record.fits)) or "none"
            raise SelectionError(
                f"{self.location} has no fit named {name!r} (there: {there}); run `ckptlin fit {self.location}`"
            )
        fit = self.record.fits[name]
        if self.is_stale(fit):
            raise StaleFitError(
                f"fit {name!r} of {self.location} was computed from checkpoints that have since been replaced; "
                f"run `ckptlin fit {self.location} --name {name}` again"
            )
        return fit

    def gram_record(self) -> GramRecord:
        """Return the record of the Gram matrices.

        Raises
        ------
        SelectionError
            If there are none.
        StaleFitError
            If the checkpoints that they were computed from are not those in the store any more.
        """
        gram = self.record.gram
        if gram is None:
            raise SelectionError(f"{self.location} has no Gram matrices; run `ckptlin gram {self.location}`")
        if self.is_stale(gram):
            raise StaleFitError(
                f"the Gram matrices of {self.location} were computed from checkpoints that have since been "
                f"replaced; run `ckptlin gram {self.location}` again"
            )
        return gram

    def is_stale(self, record: FitRecord | GramRecord) -> bool:
        """Tell whether checkpoints that something was computed from are not those in the store any more."""
        current = {c.step: c.fingerprint for c in self.checkpoints}
        return any(
            current.get(step) != found for step, found in zip(record.steps, record.fingerprints, strict=True)
        )

    def read_gram(self, path: str, shape: Sequence[int], dtype: Any, chunk: int) -> np.ndarray[Any, Any]:
        """Read an array below the Gram matrices' group, cut along its last axis into pieces of ``chunk``."""
        out = np.empty(tuple(shape), dtype)
        prefix = self._root_of(
            "the group of the Gram matrices",
            self.gram_record().id,
            (GRAM, STAGED_GRAM),
            f"gram {self.location}",
        )
        for index, lo in enumerate(range(0, shape[-1], chunk)):
            padded = np.empty((*shape[:-1], chunk), dtype)
            self._read_plain(chunk_key(f"{prefix}/{path}", (*[0] * (len(shape) - 1), index)), padded)
            out[..., lo : lo + chunk] = padded[..., : shape[-1] - lo]
        return out

    def read_table(self, fit: str, table: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
        """Read a summary table of a fit, float64, cut along its first axis into chunks."""
        out = np.empty(tuple(shape), np.float64)
        chunk = table_chunk(shape[0])
        prefix = self._fit_root(fit)
        for index, lo in enumerate(range(0, shape[0], chunk)):
            padded = np.empty((chunk, *shape[1:]), np.float64)
            key = chunk_key(f"{prefix}/{table}", (index, *[0] * (len(shape) - 1)))
            self._read_plain(key, padded)
            out[lo : lo + chunk] = padded[: shape[0] - lo]
        return out

    def read_map(self, fit: str, map_name: str, block: Block) -> np.ndarray[Any, Any]:
        """Read a block of a fit's map, ``(num_params,)`` of the map's own dtype."""
        dtype = from_zarr(self.fit_record(fit).maps[map_name])
        out = np.empty(self.chunk_params(block.tensor), dtype.numpy)
        key = chunk_key(f"{self._fit_root(fit)}/{map_name}/{encode_name(block.tensor)}", block.index)
        self._read_plain(key, out)
        return out[: block.num_params]

    def _fit_root(self, name: str) -> str:
        places = (fit_prefix(name), f"{STAGED_FITS}/{encode_name(name)}")
        command = f"fit {self.location} --name {name}"
        return self._root_of(f"fit {name!r}", self.fit_record(name).id, places, command)

    def _root_of(self, what: str, identity: str, places: Sequence[str], command: str) -> str:
        """Find where what was computed lies: it may be changing places with its successor."""
        if identity not in self._roots:
            for prefix in places:
                data = self.files.read(f"{prefix}/{ROOT_KEY}")
                if data is not None and _fit_id(data) == identity:
                    self._roots[identity] = prefix
                    break
            else:
                raise StaleFitError(
                    f"{what} of {self.location} is not where it should be: another process is replacing it, or "
                    f"it was damaged; run this again, or `ckptlin {command}`"
                )
        return self._roots[identity]

    def num_stored_bytes(self) -> int:
        """Bytes that the weights take on disk."""
        return sum(size for _, size in self.files.list_below("weights"))

    def _read_plain(self, key: str, out: np.ndarray[Any, Any]) -> None:
        data = self._read_key(key)
        if data is None:
            raise CorruptChunkError(f"{self.files.where(key)} is missing")
        decode_plain(data, out, self.files.where(key))

    def _read_key(self, key: str) -> bytes | None:
        data = self.files.read(key)
        # Rows of a store that was rebuilt may be those of other steps.
        if self.files.generation() != self._generation:
            raise StoreError(f"{self.location} was replaced while it was being read; run this again")
        return data


def _reopen(location: str, commit: int) -> TrajectoryStore:
    """Open a store in another process, once for all tasks."""
    store = _opened(location, commit)
    if store.record.commit != commit:
        raise StoreError(f"{location} was written to by another process; run this again")
    return store


@lru_cache(maxsize=4)
def _opened(location: str, commit: int) -> TrajectoryStore:
    return TrajectoryStore(location)


def describe_steps(steps: Sequence[int]) -> str:
    """Describe steps in a few words: ``14 steps, 0 to 1300``.

    Examples
    --------
    >>> describe_steps([0, 100, 200]), describe_steps([7]), describe_steps([])
    ('3 steps, 0 to 200', 'step 7', 'no steps')
    """
    if not steps:
        return "no steps"
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}"


def _fit_id(document: bytes) -> Any:
    """Return the id that a fit's group gives, None if it is garbled."""
    try:
        return json.loads(document)["attributes"]["ckptlin"]["id"]
    except (KeyError, TypeError, ValueError):
        return None


def _span(steps: Sequence[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def _what_is_there(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is a file, not a trajectory store"
    return "is a directory, but not a trajectory store"
