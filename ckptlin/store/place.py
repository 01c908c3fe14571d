"""Where a store is written: the lock of its place, and how it becomes visible under its name.

On a disk a new store grows in a hidden directory beside its final name and is renamed when it commits.  In an
object store it grows under its final URL: without its root document it is none yet.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ckptlin.atomic import replace_directory, sync_directory
from ckptlin.errors import NotAStoreError, StepConflictError
from ckptlin.store.files import StoreFiles
from ckptlin.store.journal import JOURNAL, FileJournal, Journal, SegmentJournal
from ckptlin.store.local_files import LocalFiles
from ckptlin.store.lock import LOCK_FILE, writer_lock
from ckptlin.store.metadata import ROOT_KEY
from ckptlin.store.url_files import UrlFiles, open_files
from ckptlin.store.url_lock import UrlLock

__all__ = ["Place", "open_place"]


class Place(Protocol):
    """What a writer has to know of where it writes.

    Attributes
    ----------
    location : str
        Path or URL of the store, with links followed.
    """

    location: str

    @property
    def files(self) -> StoreFiles:
        """The files that are written."""

    @property
    def journal(self) -> Journal:
        """The journal beside them."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the writer's lock.

        Raises
        ------
        NotAStoreError
            If there is something else.
        StoreLockedError
            If another process is writing.
        """

    def check_lock(self) -> None:
        """Check that the lock was not taken over; StoreLockedError otherwise."""

    def is_committed(self) -> bool:
        """Tell whether there is a store under the final name."""

    def take_name(self) -> None:
        """Let the new store, whose root is written, take its final name."""

    def give_up(self) -> None:
        """Remove the place of a new store, from which everything was removed."""

    def remove_former(self) -> None:
        """Remove a former store that had left its name, but was not removed yet."""

    def has_leftovers(self) -> bool:
        """Tell whether a writer may have been killed here."""


class LocalPlace:
    """A `Place` on a disk.

    Parameters
    ----------
    path : Path
        Final name of the store.  If it is a link, the directory that it points to is meant.
    fresh : bool
        Whether a new store is built, beside that name.
    """

    def __init__(self, path: str, *, fresh: bool) -> None:
        self._given = path
        self._path = Path(os.path.realpath(path))
        self._beside = self._path.with_name(f".{self._path.name}.ingesting")
        self._fresh = fresh
        self._root = self._beside if fresh else self._path
        self.location = str(self._path)
        self.files: StoreFiles = LocalFiles(self._root)
        self.journal: Journal = FileJournal(self._root)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the writer's lock, of a new store and of the one that is there."""
        with ExitStack() as stack:
            if self.is_committed():
                stack.enter_context(writer_lock(self._path, self._given))
            elif self._path.is_dir() and any(self._path.iterdir()):
                raise NotAStoreError(
                    f"{self._given} is a directory with other content; give a new path for the store"
                )
            elif self._path.exists() and not self._path.is_dir():
                raise NotAStoreError(f"{self._given} is a file; give a new path for the store")
            if self._fresh:
                self._root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(writer_lock(self._root, self._given))
            yield

    def check_lock(self) -> None:
        """Do nothing: the system takes the lock from nobody."""

    def is_committed(self) -> bool:
        """Tell whether there is a store under the final name."""
        return (self._path / ROOT_KEY).exists()

    def take_name(self) -> None:
        """Exchange the new store with the one that is there, or rename it."""
        if self.is_committed():
            replace_directory(self._root, self._path)
        else:
            self._root.rename(self._path)  # also onto an empty directory
            sync_directory(self._path.parent)
        self.journal.close()
        self._fresh = False
        self._root = self._path
        self.files = LocalFiles(self._root)
        self.journal = FileJournal(self._root)

    def give_up(self) -> None:
        """Remove the directory beside the final name."""
        shutil.rmtree(self._root)

    def remove_former(self) -> None:
        """Remove what was exchanged with the store; its journal goes last, so that only a new one has one."""
        if self._beside.is_dir() and not (self._beside / JOURNAL).exists():
            shutil.rmtree(self._beside)

    def has_leftovers(self) -> bool:
        """Tell whether a writer may have been killed here."""
        return self.journal.exists() or self._beside.exists()


class UrlPlace:
    """A `Place` at a URL.

    Raises
    ------
    StepConflictError
        From `hold`, if a new store is to take the place of one that is there.
    """

    def __init__(self, url: str, *, fresh: bool) -> None:
        files = UrlFiles(url)
        self._fresh = fresh
        self._lock = UrlLock(files)
        self.location = url
        self.files: StoreFiles = files
        self.journal: Journal = SegmentJournal(files)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the writer's lock."""
        if not self.is_committed():
            there = set(self.files.names("")) - {LOCK_FILE}
            if there and JOURNAL not in there:
                raise NotAStoreError(
                    f"{self.location} holds other objects, such as {min(there)}; give a new URL for the store"
                )
        with self._lock:
            if self._fresh and self.is_committed():
                raise StepConflictError(
                    f"{self.location} cannot be built anew, as nothing at a URL takes another's place in one "
                    "step; ingest the run into a store at a new URL"
                )
            yield

    def check_lock(self) -> None:
        """Check that the lock was not taken over; StoreLockedError otherwise."""
        self._lock.check()

    def is_committed(self) -> bool:
        """Tell whether there is a store."""
        return self.files.exists(ROOT_KEY)

    def take_name(self) -> None:
        """Do nothing more: the root is there."""
        self._fresh = False

    def give_up(self) -> None:
        """Do nothing more: there are no directories."""

    def remove_former(self) -> None:
        """Do nothing: a former store is never beside its name."""

    def has_leftovers(self) -> bool:
        """Tell whether a writer may have been killed here."""
        return self.journal.exists()


def open_place(location: str | os.PathLike[str], *, fresh: bool) -> Place:
    """Return where a store of that path or URL is written."""
    files = open_files(location)
    if isinstance(files, UrlFiles):
        return UrlPlace(files.url, fresh=fresh)
    return LocalPlace(files.where(""), fresh=fresh)
