"""The files of a store on a local disk."""

import itertools
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ckptlin.atomic import exchange, is_disk_full, sync_directory
from ckptlin.errors import DiskFullError

__all__ = ["PARTIAL_DIR", "LocalFiles"]

T = TypeVar("T")
R = TypeVar("R")

# Files on their way; on the store's own file system, so that a rename ends them.
PARTIAL_DIR = ".partial"
# Files that are written but not yet synced, and the threads that wait for the disk meanwhile.  The file system
# syncs neighbours together, so that several at a time take little longer than one.
_MAX_UNSYNCED, _SYNC_THREADS = 16, 4


class LocalFiles:
    """Keys as files below a root directory: a `ckptlin.store.files.StoreFiles`.

    Parameters
    ----------
    root : Path
    is_remote : bool
        Whether this is a copy for a task in another process, which is done when its files are durable:
        `write_behind` then waits for the disk.
    """

    # What `write_behind` leaves to its threads lies in the file system already.
    behind_bytes = 0

    def __init__(self, root: Path, *, is_remote: bool = False) -> None:
        self.root = root
        self._is_remote = is_remote
        self._touched: set[Path] = set()
        self._made: set[Path] = set()
        self._token = secrets.token_hex(4)  # other processes may write here too
        self._serial = itertools.count()  # next() is atomic under the GIL
        self._slots = threading.BoundedSemaphore(_MAX_UNSYNCED)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), is_remote=True), (self.root,)

    def where(self, key: str) -> str:
        """Return the path of a key."""
        return str(self.root / key)

    def generation(self) -> int | None:
        """Return the directory's inode: another one if it was exchanged; None if there is none."""
        try:
            return self.root.stat().st_ino
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def prefetch(self, key: str) -> None:
        """Have the system read a file into its cache, where it can, without waiting for it."""
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            fd = os.open(self.root / key, os.O_RDONLY)
        except OSError:
            return  # whoever reads it will say what is wrong
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)

    def exists(self, key: str) -> bool:
        """Tell whether there is a file or directory."""
        return (self.root / key).exists()

    def names(self, key: str) -> list[str]:
        """List the files and directories right below a key."""
        path = self.root / key
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None if there is no such file."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None

    def tail(self, key: str, num_bytes: int) -> bytes:
        """Return the last bytes of a file."""
        with (self.root / key).open("rb") as file:
            file.seek(-num_bytes, os.SEEK_END)
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        """Write a file: to a temporary name, synced, then renamed.  Thread-safe for distinct keys.

        Raises
        ------
        DiskFullError
            If the disk is full; whatever was there under the key stays.
        """
        fd, path = self._write_unsynced(key, data)
        self._sync_and_name(fd, path, key, len(data))

    def write_behind(self, key: str, data: bytes, done: Callable[[], None] | None = None) -> None:
        """Write a file like `write`, but leave it to another thread to wait for the disk.

        ``done`` is called when the file is durable and has its name.  `flush` waits for all; an error of a
        file that was written before is raised here or there.
        """
        if self._is_remote:
            self.write(key, data)
            if done is not None:
                done()
            return
        self._raise_failure()
        self._slots.acquire()
        try:
            fd, path = self._write_unsynced(key, data)
        except BaseException:
            self._slots.release()
            raise

        num_bytes = len(data)

        def finish() -> None:
            try:
                self._sync_and_name(fd, path, key, num_bytes)
                if done is not None:
                    done()
            except BaseException as error:  # noqa: BLE001 (raised in the thread that writes)
                self._failure = self._failure or error
            finally:
                self._slots.release()

        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="ckptlin-sync")
            self._threads.submit(finish)

    def flush(self) -> None:
        """Wait until everything that was written is durable; raise what went wrong."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        self._raise_failure()

    def note(self, key: str) -> None:
        """Note that another process has written a file, so that `sync` makes its name durable."""
        self._touched.add((self.root / key).parent)

    def remove(self, key: str) -> None:
        """Remove a file if it is there."""
        (self.root / key).unlink(missing_ok=True)

    def remove_tree(self, key: str) -> None:
        """Remove a file, or everything below a key, if it is there."""
        path = self.root / key
        if path.is_dir():
            shutil.rmtree(path)
            self._made = {made for made in self._made if not made.is_relative_to(path)}
        elif os.path.lexists(path):
            path.unlink()

    def exchange(self, first: str, second: str) -> bool:
        """Exchange two directories in one step; False where that does not exist."""
        return exchange(self.root / first, self.root / second)

    def move(self, source: str, target: str) -> None:
        """Rename a directory."""
        (self.root / source).rename(self.root / target)

    def sync_names(self, *keys: str) -> None:
        """Make the names right below some directories durable."""
        for key in keys:
            sync_directory(self.root / key)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function that reads or writes files to each item, many at once; results are in order.

        A file system syncs many files in little more time than one.
        """
        with ThreadPoolExecutor(_MAX_UNSYNCED, thread_name_prefix="ckptlin-sync") as pool:
            return list(pool.map(function, items))

    def list_below(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the key and size of every file below a key."""
        for directory, _, names in os.walk(self.root / key):
            for name in names:
                path = Path(directory, name)
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def sync(self) -> None:
        """Make all files written so far and their names durable."""
        self.flush()
        parents = set(self._touched)
        for directory in self._touched:
            while directory != self.root:
                directory = directory.parent
                parents.add(directory)
        self.map(sync_directory, sorted(directory for directory in parents if directory.is_dir()))
        self._touched.clear()

    def sweep(self) -> None:
        """Remove what an interrupted writer left half-written."""
        self.remove_tree(PARTIAL_DIR)

    def _write_unsynced(self, key: str, data: bytes) -> tuple[int, Path]:
        path = self.root / PARTIAL_DIR / f"{self._token}-{next(self._serial)}"
        fd = -1
        try:
            self._make(path.parent)
            self._make((self.root / key).parent)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            self._drop(fd, path)
            if is_disk_full(error):
                raise self._disk_full(key, len(data)) from error
            raise
        except BaseException:
            self._drop(fd, path)
            raise
        return fd, path

    def _sync_and_name(self, fd: int, path: Path, key: str, num_bytes: int) -> None:
        target = self.root / key
        try:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            path.replace(target)
        except OSError as error:
            path.unlink(missing_ok=True)
            if is_disk_full(error):
                raise self._disk_full(key, num_bytes) from error
            raise
        self._touched.add(target.parent)

    @staticmethod
    def _drop(fd: int, path: Path) -> None:
        if fd >= 0:
            os.close(fd)
        path.unlink(missing_ok=True)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _disk_full(self, key: str, num_bytes: int) -> DiskFullError:
        return DiskFullError(
            f"the disk is full: {self.root / key} ({num_bytes} bytes) could not be written; free some space on "
            f"the file system of {self.root} and run the command again"
        )

    def _make(self, directory: Path) -> None:
        if directory not in self._made:
            directory.mkdir(parents=True, exist_ok=True)
            self._made.add(directory)
