"""What the stores of steps share: zarr v3 groups in a local directory that grow by a step at a time.

The root's ``zarr.json``, written last and in one rename, commits a step: it holds what is known of each
step, and the consolidated metadata of every array, so that a reader who opens consolidated (zarr's and
xarray's default) sees whole steps alone.  Chunks and metadata of single arrays may run ahead of it after a
kill; the next writer writes them again.  Codecs are zarr's own (blosc, crc32c).  Which arrays there are, each
kind of store says for itself.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from ckptlin._version import __version__
from ckptlin.atomic import is_disk_full
from ckptlin.errors import (
    CorruptChunkError,
    DiskFullError,
    InputError,
    NotAStoreError,
    SelectionError,
    StepConflictError,
    StoreVersionError,
)
from ckptlin.selection import select_rows
from ckptlin.store.chunk_codec import BloscCompressor, decode_plain, encode_plain
from ckptlin.store.local_files import PARTIAL_DIR, LocalFiles
from ckptlin.store.lock import LOCK_FILE, writer_lock
from ckptlin.store.metadata import ROOT_KEY, STEP_CHUNK, dump, group_metadata
from ckptlin.store.store import chunk_key, describe_steps
from ckptlin.urls import is_url

__all__ = ["COMPRESSOR", "StepStore", "StepStoreWriter", "TokenStep", "begun", "write_array"]

COMPRESSOR = BloscCompressor("zstd", 3)
_STEP_COMPRESSOR = BloscCompressor("zstd", 1, "noshuffle")


@dataclass(frozen=True)
class TokenStep:
    """What is known of a step in the store.

    Attributes
    ----------
    step : int
    source : str
        The checkpoint.
    fingerprint : str
        Of its content.
    identity : mapping
        What tells, without reading a weight, that the checkpoint is the same.
    engine : mapping
        That computed it: name, device, dtype.
    versions : mapping of str to str
    """

    step: int
    source: str
    fingerprint: str
    identity: Mapping[str, Any]
    engine: Mapping[str, Any]
    versions: Mapping[str, str]


class StepStore:
    """Arrays with a row for each step, as committed; each kind of store inherits from it.

    Parameters
    ----------
    path : path-like
        A local directory.

    Attributes
    ----------
    path : Path
    record : dict
        What the store says of itself, as plain data.

    Raises
    ------
    NotAStoreError, StoreVersionError
    InputError
        If it is a URL.
    """

    KEY: ClassVar[str]  # the root's attribute that has the record
    FORMAT: ClassVar[int]
    CONTENT: ClassVar[str]  # what it is a store of, for messages
    COMMAND: ClassVar[str]  # of ckptlin, that makes it
    ARRAYS: ClassVar[frozenset[str]]  # those that may be there before the root is

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = self.locate(path)
        self._files = LocalFiles(self.path)
        document = self._files.read(ROOT_KEY)
        if document is None:
            raise NotAStoreError(
                f"{self.path} holds no store of {self.CONTENT}; make one with `{self._making()}`"
            )
        try:
            self._root = json.loads(document)
            record = self._root["attributes"][self.KEY]
            version = record["format_version"]
        except (ValueError, KeyError, TypeError):
            raise NotAStoreError(
                f"{self.path} is no store of {self.CONTENT}: its {ROOT_KEY} is something else's"
            ) from None
        if version > self.FORMAT:
            raise StoreVersionError(
                f"{self.path} has format version {version}, and this ckptlin reads up to {self.FORMAT}; "
                "update ckptlin"
            )
        self.record: dict[str, Any] = record
        self._steps = tuple(TokenStep(**step) for step in record["steps"])

    @classmethod
    def locate(cls, path: str | os.PathLike[str]) -> Path:
        """Return where a store lies; InputError if it is a URL."""
        if is_url(os.fspath(path)):
            raise InputError(f"{path} is a URL; a store of {cls.CONTENT} lies on a local disk")
        return Path(path)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Self | None:
        """Open the store that lies in a directory; None if none has been begun there."""
        return cls(path) if (cls.locate(path) / ROOT_KEY).exists() else None

    @classmethod
    def nodes(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the metadata of every array of a store with this record, by name."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[int, ...]:
        """Committed steps, ascending."""
        return tuple(sorted(step.step for step in self._steps))

    def find(self, step: int) -> TokenStep | None:
        """Return what is known of a step; None if it is not there."""
        return next((known for known in self._steps if known.step == step), None)

    def steps_to_fit(self, window: str | None) -> tuple[int, ...]:
        """Select the steps of a fit, see `ckptlin.selection.select_rows`; InputError if fewer than two."""
        if len(self.steps) < 2:
            raise InputError(
                f"a fit needs at least 2 steps, and {self.path} has {len(self.steps)}; compute more with "
                f"`{self._making()}`"
            )
        chosen = tuple(self.steps[row] for row in select_rows(self.steps, window))
        if len(chosen) < 2:
            raise InputError(f"a fit needs at least 2 steps, and --steps {window} selects {len(chosen)}")
        return chosen

    def _making(self) -> str:
        return f"ckptlin {self.COMMAND} RUN --responses FILE --out {self.path}"

    def _read_rows(
        self,
        out: np.ndarray[Any, Any],
        steps: Sequence[int],
        start: int,
        *,
        size: int,
        chunk: Callable[[int, int], Any],
    ) -> np.ndarray[Any, Any]:
        """Fill ``out``, ``(len(steps), length, ...)``, with the entries of some steps from ``start`` on.

        ``chunk`` reads, by row and index, one of the chunks of ``size`` entries that a row is divided into.
        """
        rows = {known.step: row for row, known in enumerate(self._steps)}
        stop = start + out.shape[1]
        for target, step in zip(out, steps, strict=True):
            if step not in rows:
                raise SelectionError(
                    f"step {step} is not in {self.path}, which holds {describe_steps(self.steps)}"
                )
            for index in range(start // size, -(-stop // size)):
                first = index * size
                lo, hi = max(start, first), min(stop, first + size)
                target[lo - start : hi - start] = chunk(rows[step], index)[lo - first : hi - first]
        return out

    def _chunk(self, array: str, index: Sequence[int], out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        key = chunk_key(array, index)
        data = self._files.read(key)
        if data is None:
            raise CorruptChunkError(f"{self._files.where(key)} is missing; compute the store anew")
        decode_plain(data, out, self._files.where(key))
        return out


S = TypeVar("S", bound=StepStore)


class StepStoreWriter(Generic[S]):
    """Writes a store, while its lock is held; each kind of store inherits from it, and says what a step holds.

    Attributes
    ----------
    store : StepStore
        As committed so far.
    """

    KIND: type[S]

    def __init__(self, path: Path) -> None:
        self._files = LocalFiles(path)
        self._files.sweep()
        self.store = self.KIND(path)

    def _new_row(self, step: TokenStep) -> int:
        """Return the row that a step gets; StepConflictError if the step is there."""
        if self.store.find(step.step) is not None:
            raise StepConflictError(f"step {step.step} is in {self.store.path} already")
        return len(self.store.record["steps"])

    def _write(self, array: str, index: Sequence[int], values: np.ndarray[Any, Any]) -> None:
        self._files.write_behind(chunk_key(array, index), encode_plain(values, COMPRESSOR))

    def _commit(self, step: TokenStep, **changes: Any) -> None:
        """Make a step visible whose chunks are written, with other changes of the record."""
        record = self.store.record | {"steps": [*self.store.record["steps"], asdict(step)]} | changes
        steps = np.array([known["step"] for known in record["steps"]], np.int64)
        write_array(self._files, "step", steps, STEP_CHUNK, _STEP_COMPRESSOR)
        _commit(self._files, self.KIND, record)
        self.store = self.KIND(self.store.path)


@contextmanager
def begun(
    path: str | os.PathLike[str], kind: type[StepStore], begin: Callable[[LocalFiles], Mapping[str, Any]]
) -> Iterator[Path]:
    """Give the directory of a store that is there, or is made now; one process at a time.

    Parameters
    ----------
    path : path-like
        Local directory.
    kind : type of StepStore
    begin : callable
        Writes the arrays that do not change, and returns the store's record without what every kind has.

    Raises
    ------
    InputError
        If it is a URL or holds something else.
    StoreLockedError
        If another process writes to it.
    DiskFullError
        If the disk is full, also in the block.
    """
    root = kind.locate(path)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; give a directory for the store")
    if root.is_dir() and not (root / ROOT_KEY).exists():
        others = {child.name for child in root.iterdir()} - {*kind.ARRAYS, "step", LOCK_FILE, PARTIAL_DIR}
        if others:
            raise InputError(f"{root} holds something else ({min(others)}); give another --out")
    with _explaining_a_full_disk(root), ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        stack.enter_context(writer_lock(root, str(root)))
        if not (root / ROOT_KEY).exists():
            files = LocalFiles(root)
            files.sweep()
            made_by = {"format_version": kind.FORMAT, "created_by": f"ckptlin {__version__}"}
            _commit(files, kind, made_by | dict(begin(files)) | {"steps": []})
        yield root


def write_array(
    files: LocalFiles,
    array: str,
    values: np.ndarray[Any, Any],
    size: int,
    compressor: BloscCompressor = COMPRESSOR,
    *,
    row: int | None = None,
) -> None:
    """Write an array of one dimension, or a row of one of two, in chunks; zeros fill the last one up."""
    for index, lo in enumerate(range(0, values.size, size)):
        piece = np.zeros(size, values.dtype)
        piece[: values.size - lo] = values[lo : lo + size]
        key = chunk_key(array, (index,) if row is None else (row, index))
        files.write_behind(key, encode_plain(piece, compressor))


def _commit(files: LocalFiles, kind: type[StepStore], record: Mapping[str, Any]) -> None:
    """Write every array's metadata, then the root, which makes all of it visible."""
    nodes = dict(sorted(kind.nodes(record).items()))
    for name, node in nodes.items():
        key, data = f"{name}/{ROOT_KEY}", dump(node)
        if files.read(key) != data:
            files.write_behind(key, data)
    files.flush()
    files.sync()
    root = group_metadata({kind.KEY: dict(record)})
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
    files.write(ROOT_KEY, dump(root))
    files.sync()


@contextmanager
def _explaining_a_full_disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"the disk is full: {root} could not be written; free some space and give the same "
                "command again"
            ) from error
        raise
