"""Writing to a trajectory store: chunks first, then one atomic write that commits them.

A new store grows in a hidden directory beside its final name and is renamed when it commits; an existing one
is appended to in place.  Until the root ``zarr.json`` is replaced, readers see the previous commit: new chunks
lie beyond its shapes, and a chunk that was only partly filled decodes to the same first rows after it was
written again with more.  A journal of finished chunks lets the next run go on where a killed one stopped.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.atomic import exchange, is_disk_full, replace_directory, sync_directory
from ckptlin.errors import DiskFullError, NotAStoreError, StoreLockedError
from ckptlin.naming import encode_name
from ckptlin.store.chunk_codec import encode_plain
from ckptlin.store.files import StoreFiles
from ckptlin.store.lock import LOCK_FILE, writer_lock
from ckptlin.store.metadata import (
    BLOB_COMPRESSOR,
    ROOT_KEY,
    STEP_CHUNK,
    STEP_COMPRESSOR,
    StoreRecord,
    dump,
    fit_nodes,
    group_metadata,
    nodes_of,
    root_document,
)
from ckptlin.store.store import STAGED_FITS, TrajectoryStore, chunk_key, fit_prefix

__all__ = ["ChunkEntry", "StoreWriter", "sweep_leftovers"]

JOURNAL = ".journal"


def sweep_leftovers(path: Path) -> None:
    """Remove what a writer left that was killed right after its commit; unless another one is writing."""
    with suppress(StoreLockedError):
        writer = StoreWriter(path, fresh=False)
        if (writer.root / JOURNAL).exists() or writer.beside.exists():
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
    path : Path
        Final name of the store.  If it is a link, the directory that it points to is meant.
    fresh : bool
        Build a new store, which takes the place of whatever store is there when it commits; otherwise
        append to the store that is there.

    Raises
    ------
    StoreLockedError
        If another process is writing.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.location = str(path)
        self.path = Path(os.path.realpath(path))
        self.fresh = fresh
        self.beside = self.path.with_name(f".{self.path.name}.ingesting")
        self.root = self.beside if fresh else self.path
        self.files = StoreFiles(self.root)
        self._exit = ExitStack()
        self._journal_fd: int | None = None

    def __enter__(self) -> Self:
        with self._explaining_a_full_disk(), ExitStack() as stack:
            if (self.path / ROOT_KEY).exists():
                stack.enter_context(writer_lock(self.path, self.location))
            elif self.path.is_dir() and any(self.path.iterdir()):
                raise NotAStoreError(
                    f"{self.location} is a directory with other content; give a new path for the store"
                )
            elif self.path.exists() and not self.path.is_dir():
                raise NotAStoreError(f"{self.location} is a file; give a new path for the store")
            if self.fresh:
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(writer_lock(self.root, self.location))
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
            self._close_journal()
            # After a kill or Ctrl-C what is finished stays for the next run to go on with.
            if isinstance(error, Exception):
                self.abandon()
                if self.fresh:
                    shutil.rmtree(self.root)
                if isinstance(error, OSError):
                    raise error

    def check_follows(self, num_commits: int) -> None:
        """Check that the store is as it was after ``num_commits`` commits, 0 for none yet.

        Raises
        ------
        StoreLockedError
            If another process has committed since: what was planned before the lock was held would undo that.
        """
        found = self._committed().commit if (self.path / ROOT_KEY).exists() else 0
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
        journal = self.root / JOURNAL
        lines = journal.read_text().split("\n") if journal.exists() else []
        if lines and lines[0] == text:
            done = self._still_there(lines[1:])
        else:
            self.abandon()
        is_new = not journal.exists()
        self._journal_fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # A line that the killed writer had begun must not swallow the next one.
        self._note(text if is_new else "")
        return done

    def note_chunk(self, entry: ChunkEntry) -> None:
        """Note in the journal that a chunk is durable.  Thread-safe."""
        self.files.note(entry.key)
        self._note(json.dumps(asdict(entry)))

    def write_blob(self, digest: str, data: bytes) -> None:
        """Keep a file under its hash."""
        if data:
            key = chunk_key(f"files/{digest}", (0,))
            self.files.write(key, encode_plain(np.frombuffer(data, np.uint8), BLOB_COMPRESSOR))

    def write_steps(self, group: str, steps: tuple[int, ...]) -> None:
        """Write the ``step`` coordinate of a group."""
        for index, lo in enumerate(range(0, max(len(steps), 1), STEP_CHUNK)):
            padded = np.zeros(STEP_CHUNK, np.int64)
            part = steps[lo : lo + STEP_CHUNK]
            padded[: len(part)] = part
            self._write_if_other(chunk_key(f"{group}/step", (index,)), encode_plain(padded, STEP_COMPRESSOR))

    def commit(self, record: StoreRecord) -> TrajectoryStore:
        """Write all metadata, the root last, and make the store visible under its name."""
        self.check_follows(record.commit - 1)
        self.write_steps("weights", record.steps)
        nodes = nodes_of(record)
        for path in sorted(nodes):
            if not path.startswith("fits/"):
                self._write_if_other(f"{path}/zarr.json", dump(nodes[path]))
        self._commit_root(record)
        if self.fresh:
            self._take_name()
        self._settle()
        return TrajectoryStore(self.location)

    def commit_fit(self, record: StoreRecord, name: str) -> TrajectoryStore:
        """Commit a fit whose arrays were written below `staged_fit`."""
        self.check_follows(record.commit - 1)
        staged = self.staged_fit(name)
        for path, node in fit_nodes(record, name).items():
            self.files.write(f"{staged}/{path}/zarr.json" if path else f"{staged}/zarr.json", dump(node))
        self.write_steps(staged, record.fits[name].steps)
        self._write_if_other("fits/zarr.json", dump(group_metadata()))
        self.files.sync()
        new, old = self.root / staged, self.root / fit_prefix(name)
        if not old.exists():
            new.rename(old)
        elif not exchange(new, old):
            # No exchange on this file system: the old fit is taken out of the record before it goes.
            current = self._committed()
            others = {n: fit for n, fit in current.fits.items() if n != name}
            self._commit_root(replace(current, fits=others))
            self.files.remove_tree(fit_prefix(name))
            new.rename(old)
        sync_directory(old.parent)
        sync_directory(new.parent)
        self._commit_root(record)
        self._settle(STAGED_FITS)
        return TrajectoryStore(self.location)

    def staged_fit(self, name: str) -> str:
        """Return where a fit's arrays are written before it commits."""
        return f"{STAGED_FITS}/{encode_name(name)}"

    def abandon(self) -> None:
        """Remove whatever was written and not committed."""
        self._close_journal()
        if self.fresh:
            for entry in self.root.iterdir():
                if entry.is_dir():
                    self.files.remove_tree(entry.name)
                elif entry.name != LOCK_FILE:
                    entry.unlink()
            return
        committed = self._committed()
        rows = -(-len(committed.steps) // committed.chunk_steps)
        for spec in committed.tensors:
            chunks = self.root / f"weights/{encode_name(spec.name)}/c"
            for entry in chunks.iterdir() if chunks.is_dir() else ():
                if entry.name.isdigit() and int(entry.name) >= rows:
                    if entry.is_dir():
                        self.files.remove_tree(entry.relative_to(self.root).as_posix())
                    else:
                        entry.unlink()
        self._restore_fits(committed)
        self._restore(committed)
        self._settle(STAGED_FITS)

    def _repair(self) -> None:
        """Undo what a writer that died between its chunks and its commit may have left."""
        record = self._committed()
        if (self.root / JOURNAL).exists():
            self._restore(record)
            if self._journal_commit() != record.commit:
                self.abandon()  # its writer died after it had committed
        if self.beside.is_dir() and not (self.beside / JOURNAL).exists():
            shutil.rmtree(self.beside)  # the former store, whose writer died before it had removed it
        self._restore_fits(record)
        self.files.remove_tree(STAGED_FITS)

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
        for path, node in nodes_of(record).items():
            if not path.startswith("fits/"):
                self._write_if_other(f"{path}/zarr.json", dump(node))
        for entry in (self.root / "files").iterdir():
            if entry.is_dir() and entry.name not in record.blobs:
                self.files.remove_tree(f"files/{entry.name}")

    def _journal_commit(self) -> int | None:
        """Return the commit number that the journal's writer began from."""
        try:
            commit = json.loads((self.root / JOURNAL).read_text().split("\n")[0])["commit"]
        except (ValueError, KeyError, TypeError):
            return None
        return commit if isinstance(commit, int) else None

    def _restore_fits(self, record: StoreRecord) -> None:
        """Put committed fits back that had changed places with others, and remove those not committed."""
        for name, fit in record.fits.items():
            staged, committed = self.staged_fit(name), fit_prefix(name)
            if self._fit_id(committed) != fit.id and self._fit_id(staged) == fit.id:
                exchange(self.root / staged, self.root / committed)
        kept = {fit_prefix(name) for name in record.fits}
        fits = self.root / "fits"
        for entry in fits.iterdir() if fits.is_dir() else ():
            if entry.is_dir() and f"fits/{entry.name}" not in kept:
                self.files.remove_tree(f"fits/{entry.name}")

    def _fit_id(self, prefix: str) -> str | None:
        data = self.files.read(f"{prefix}/{ROOT_KEY}")
        return json.loads(data)["attributes"]["ckptlin"]["id"] if data is not None else None

    def _still_there(self, lines: list[str]) -> dict[str, ChunkEntry]:
        """Read journal entries whose chunk is there and ends in the checksum that was noted."""
        done = {}
        for line in lines:
            try:
                entry = ChunkEntry(**json.loads(line))
            except (ValueError, TypeError):
                continue
            key = entry.key
            if self.files.size(key) == entry.num_bytes and self.files.tail(key, 4).hex() == entry.tail:
                done[key] = entry
        return done

    def _committed(self) -> StoreRecord:
        return TrajectoryStore(self.path).record

    def _write_if_other(self, key: str, data: bytes) -> None:
        if self.files.read(key) != data:
            self.files.write(key, data)

    def _commit_root(self, record: StoreRecord) -> None:
        self.files.sync()
        self.files.write(ROOT_KEY, dump(root_document(record)))
        self.files.sync()

    def _settle(self, *keys: str) -> None:
        self._close_journal()
        for key in keys:
            self.files.remove_tree(key)
        self.files.sweep()
        self.files.remove(JOURNAL)

    def _take_name(self) -> None:
        """Give a new store its final name; its journal goes last, so that only a former store has none."""
        if (self.path / ROOT_KEY).exists():
            replace_directory(self.root, self.path)
        else:
            self.root.rename(self.path)  # also onto an empty directory
            sync_directory(self.path.parent)
        self.fresh = False
        self.root = self.path
        self.files = StoreFiles(self.path)

    def _note(self, line: str) -> None:
        if self._journal_fd is None:
            raise ValueError("the journal is closed: chunks are written between `begin` and `commit`")
        self.files.append(self._journal_fd, f"{line}\n".encode(), JOURNAL)

    def _close_journal(self) -> None:
        if self._journal_fd is not None:
            os.close(self._journal_fd)
            self._journal_fd = None
