"""Writing to a trajectory store: chunks first, then one atomic write that commits them.

A new store grows out of sight and becomes visible when it commits (`ckptlin.store.place`); an existing one is
appended to in place.  Until the root ``zarr.json`` is replaced, readers see the previous commit: new chunks
lie beyond its shapes, and a chunk that was only partly filled decodes to the same first rows after it was
written again with more.  A journal of finished chunks lets the next run go on where a killed one stopped.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.atomic import is_disk_full
from ckptlin.errors import DiskFullError, StoreLockedError
from ckptlin.naming import encode_name
from ckptlin.store.chunk_codec import encode_plain
from ckptlin.store.files import StoreFiles
from ckptlin.store.journal import JOURNAL
from ckptlin.store.lock import LOCK_FILE
from ckptlin.store.metadata import (
    BLOB_COMPRESSOR,
    GRAM_STEPS,
    ROOT_KEY,
    STEP_CHUNK,
    STEP_COMPRESSOR,
    StoreRecord,
    dump,
    fit_nodes,
    gram_nodes,
    group_metadata,
    nodes_of,
    root_document,
)
from ckptlin.store.place import open_place
from ckptlin.store.store import GRAM, STAGED_FITS, STAGED_GRAM, TrajectoryStore, chunk_key, fit_prefix

__all__ = ["JOURNAL", "ChunkEntry", "StoreWriter", "sweep_leftovers"]


def sweep_leftovers(location: str | os.PathLike[str]) -> None:
    """Remove what a writer left that was killed right after its commit; unless another one is writing."""
    with suppress(StoreLockedError):
        writer = StoreWriter(location, fresh=False)
        if writer.has_leftovers():
            with writer:
                pass


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """What the journal keeps of a chunk.

    Attributes
    ----------
    key : str
    num_bytes : int
    tail : str
        Its last four bytes, in hexadecimal.
    checksums : tuple of int
        crc32c of each row that was read for it.
    """

    key: str
    num_bytes: int
    tail: str
    checksums: tuple[int, ...]

    @classmethod
    def of(cls, key: str, data: bytes, checksums: Sequence[int]) -> Self:
        """Describe a chunk."""
        return cls(key, len(data), data[-4:].hex(), tuple(checksums))


class StoreWriter:
    """Exclusive access to a store for writing; a context manager.

    Parameters
    ----------
    location : path-like
        Final path or URL of the store.  If it is a link, the directory that it points to is meant.
    fresh : bool
        Build a new store, which takes the place of whatever store is there when it commits; otherwise
        append to the store that is there.

    Raises
    ------
    StoreLockedError
        If another process is writing.
    StepConflictError
        If a new store is to take the place of one at a URL.
    """

    def __init__(self, location: str | os.PathLike[str], *, fresh: bool) -> None:
        self.location = os.fspath(location)
        self.fresh = fresh
        self._place = open_place(location, fresh=fresh)
        self._exit = ExitStack()

    @property
    def files(self) -> StoreFiles:
        """Where the chunks go."""
        return self._place.files

    def has_leftovers(self) -> bool:
        """Tell whether a writer may have been killed here."""
        return self._place.has_leftovers()

    def __enter__(self) -> Self:
        with self._explaining_a_full_disk(), ExitStack() as stack:
            stack.enter_context(self._place.hold())
            self.files.sweep()
            if not self.fresh:
                self._repair()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._exit, self._explaining_a_full_disk():
            # Whatever happened, nothing writes any more when this is left.
            with suppress(Exception) if error is not None else nullcontext():
                self.files.flush()
                self._place.journal.close()
            # After a kill or Ctrl-C what is finished stays for the next run to go on with.
            if isinstance(error, Exception):
                self.abandon()
                if self.fresh:
                    self._place.give_up()
                if isinstance(error, OSError):
                    raise error

    def check_follows(self, num_commits: int) -> None:
        """Check that the store is as it was after ``num_commits`` commits, 0 for none yet.

        Raises
        ------
        StoreLockedError
            If another process has committed since: what was planned before the lock was held would undo that.
        """
        found = self._committed().commit if self._place.is_committed() else 0
        if found != num_commits:
            raise StoreLockedError(f"another process has meanwhile written to {self.location}; run this again")

    def begin(self, identity: Mapping[str, Any]) -> dict[str, ChunkEntry]:
        """Start writing chunks, or go on where a killed writer with the same identity stopped.

        Parameters
        ----------
        identity : mapping
            What is written, and ``commit``, the number of the commit that it follows.

        Returns
        -------
        dict
            Entry of each chunk that is already written, by key.
        """
        text = json.dumps(identity, sort_keys=True)
        done: dict[str, ChunkEntry] = {}
        lines = self._place.journal.read()
        if lines and lines[0] == text:
            done = self._still_there(lines[1:])
            self._place.journal.open()
        else:
            self.abandon()
            self._place.journal.open()
            self._place.journal.append(text)
        return done

    def note_chunk(self, entry: ChunkEntry) -> None:
        """Note in the journal that a chunk is durable.  Thread-safe."""
        self.files.note(entry.key)
        self._place.journal.append(json.dumps(asdict(entry)))

    def write_blob(self, digest: str, data: bytes) -> None:
        """Keep a file under its hash."""
        if data:
            key = chunk_key(f"files/{digest}", (0,))
            self.files.write(key, encode_plain(np.frombuffer(data, np.uint8), BLOB_COMPRESSOR))

    def write_steps(self, group: str, steps: tuple[int, ...], name: str = "step") -> None:
        """Write the ``step`` coordinate of a group, or one of another name."""
        for index, lo in enumerate(range(0, max(len(steps), 1), STEP_CHUNK)):
            padded = np.zeros(STEP_CHUNK, np.int64)
            part = steps[lo : lo + STEP_CHUNK]
            padded[: len(part)] = part
            self._write_if_other(chunk_key(f"{group}/{name}", (index,)), encode_plain(padded, STEP_COMPRESSOR))

    def commit(self, record: StoreRecord) -> TrajectoryStore:
        """Write all metadata, the root last, and make the store visible under its name."""
        self.check_follows(record.commit - 1)
        self.write_steps("weights", record.steps)
        nodes = nodes_of(record)
        self._write_nodes({path: nodes[path] for path in sorted(nodes) if not _is_computed(path)})
        self._commit_root(record)
        if self.fresh:
            self._place.take_name()
            self.fresh = False
        self._settle()
        return TrajectoryStore(self.location)

    def commit_fit(self, record: StoreRecord, name: str, *, gram: bool = False) -> TrajectoryStore:
        """Commit a fit whose arrays were written below `staged_fit`.

        With ``gram`` also the Gram matrices, written below `STAGED_GRAM`, in the same instant.
        """
        self.check_follows(record.commit - 1)
        staged = self.staged_fit(name)
        self._write_staged(staged, fit_nodes(record, name))
        self.write_steps(staged, record.fits[name].steps)
        self._write_if_other("fits/zarr.json", dump(group_metadata()))
        if gram:
            self._stage_gram(record)
        self.files.sync()
        # Where there is no exchange, the old one is taken out of the record before it goes.
        self._put_in_place(
            staged,
            fit_prefix(name),
            lambda current: replace(current, fits={n: f for n, f in current.fits.items() if n != name}),
        )
        self.files.sync_names("fits", STAGED_FITS)
        if gram:
            self._put_gram_in_place()
        self._commit_root(record)
        self._settle(STAGED_FITS, STAGED_GRAM)
        return TrajectoryStore(self.location)

    def commit_gram(self, record: StoreRecord) -> TrajectoryStore:
        """Commit the Gram matrices whose arrays were written below `STAGED_GRAM`."""
        self.check_follows(record.commit - 1)
        self._stage_gram(record)
        self.files.sync()
        self._put_gram_in_place()
        self._commit_root(record)
        self._settle(STAGED_GRAM)
        return TrajectoryStore(self.location)

    def staged_fit(self, name: str) -> str:
        """Return where a fit's arrays are written before it commits."""
        return f"{STAGED_FITS}/{encode_name(name)}"

    def abandon(self) -> None:
        """Remove whatever was written and not committed."""
        self._place.journal.close()
        if self.fresh:
            # The journal last: without one, what is there might be anyone's.
            for name in sorted(self.files.names(""), key=lambda name: name == JOURNAL):
                if name != LOCK_FILE:
                    self.files.remove_tree(name)
            return
        committed = self._committed()
        rows = -(-len(committed.steps) // committed.chunk_steps)
        for spec in committed.tensors:
            chunks = f"weights/{encode_name(spec.name)}/c"
            for name in self.files.names(chunks):
                if name.isdigit() and int(name) >= rows:
                    self.files.remove_tree(f"{chunks}/{name}")
        self._restore_computed(committed)
        self._restore(committed)
        self._settle(STAGED_FITS, STAGED_GRAM)

    def _repair(self) -> None:
        """Undo what a writer that died between its chunks and its commit may have left."""
        record = self._committed()
        if self._place.journal.exists():
            self._restore(record)
            if self._journal_commit() != record.commit:
                self.abandon()  # its writer died after it had committed
        self._place.remove_former()
        self._restore_computed(record)
        for staged in (STAGED_FITS, STAGED_GRAM):
            self.files.remove_tree(staged)

    @contextmanager
    def _explaining_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: {self.location} could not be written; "
                    "free some space on its file system and run the command again"
                ) from error
            raise

    def _restore(self, record: StoreRecord) -> None:
        """Take back the metadata and the files of an append that was not committed."""
        self.write_steps("weights", record.steps)
        nodes = nodes_of(record)
        self._write_nodes({path: node for path, node in nodes.items() if not _is_computed(path)})
        for name in self.files.names("files"):
            if name != ROOT_KEY and name not in record.blobs:
                self.files.remove_tree(f"files/{name}")

    def _journal_commit(self) -> int | None:
        """Return the commit number that the journal's writer began from."""
        try:
            commit = json.loads(self._place.journal.read()[0])["commit"]
        except (ValueError, KeyError, IndexError, TypeError):
            return None
        return commit if isinstance(commit, int) else None

    def _stage_gram(self, record: StoreRecord) -> None:
        """Write metadata and coordinates of the Gram matrices beside their arrays."""
        assert record.gram is not None  # noqa: S101 (only a record that has them is committed with them)
        self._write_staged(STAGED_GRAM, gram_nodes(record))
        for name in GRAM_STEPS:
            self.write_steps(STAGED_GRAM, record.gram.steps, name)

    def _put_gram_in_place(self) -> None:
        self._put_in_place(STAGED_GRAM, GRAM, lambda current: replace(current, gram=None))
        self.files.sync_names("")

    def _write_staged(self, staged: str, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Write metadata below the place where something grows; '' is that place itself."""
        self.files.map(
            lambda item: self.files.write("/".join(filter(None, (staged, item[0], ROOT_KEY))), dump(item[1])),
            nodes.items(),
        )

    def _put_in_place(self, staged: str, final: str, without: Callable[[StoreRecord], StoreRecord]) -> None:
        """Give what was staged its place, in exchange for what is there."""
        if not self.files.exists(final):
            self.files.move(staged, final)
        elif not self.files.exchange(staged, final):
            self._commit_root(without(self._committed()))
            self.files.remove_tree(final)
            self.files.move(staged, final)

    def _restore_computed(self, record: StoreRecord) -> None:
        """Put committed fits back that had changed places with others, and remove those not committed.

        And so the Gram matrices.
        """
        places = [(fit.id, self.staged_fit(name), fit_prefix(name)) for name, fit in record.fits.items()]
        if record.gram is None:
            self.files.remove_tree(GRAM)
        else:
            places.append((record.gram.id, STAGED_GRAM, GRAM))
        for identity, staged, committed in places:
            if self._id_of(committed) != identity and self._id_of(staged) == identity:
                self.files.exchange(staged, committed)
        kept = {fit_prefix(name) for name in record.fits}
        for name in self.files.names("fits"):
            if name != ROOT_KEY and f"fits/{name}" not in kept:
                self.files.remove_tree(f"fits/{name}")

    def _id_of(self, prefix: str) -> str | None:
        data = self.files.read(f"{prefix}/{ROOT_KEY}")
        return json.loads(data)["attributes"]["ckptlin"]["id"] if data is not None else None

    def _still_there(self, lines: list[str]) -> dict[str, ChunkEntry]:
        """Read journal entries whose chunk is there and ends in the checksum that was noted."""
        entries = []
        for line in lines:
            with suppress(ValueError, TypeError):
                entries.append(ChunkEntry(**json.loads(line)))

        def is_there(entry: ChunkEntry) -> bool:
            key = entry.key
            return self.files.size(key) == entry.num_bytes and self.files.tail(key, 4).hex() == entry.tail

        found = self.files.map(is_there, entries)
        return {entry.key: entry for entry, is_found in zip(entries, found, strict=True) if is_found}

    def _committed(self) -> StoreRecord:
        return TrajectoryStore(self._place.location).record

    def _write_nodes(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self.files.map(lambda path: self._write_if_other(f"{path}/{ROOT_KEY}", dump(nodes[path])), nodes)

    def _write_if_other(self, key: str, data: bytes) -> None:
        if self.files.read(key) != data:
            self.files.write(key, data)

    def _commit_root(self, record: StoreRecord) -> None:
        self.files.sync()
        self._place.check_lock()
        self.files.write(ROOT_KEY, dump(root_document(record)))
        self.files.sync()

    def _settle(self, *keys: str) -> None:
        self._place.journal.close()
        for key in keys:
            self.files.remove_tree(key)
        self.files.sweep()
        self._place.journal.remove()


def _is_computed(path: str) -> bool:
    """Tell whether a node belongs to what was computed from the weights, and is committed by itself."""
    return path.startswith("fits/") or path.split("/")[0] == GRAM
