"""The files of a store: keys below a root, read whole, written whole or not at all."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ckptlin.atomic import is_disk_full, sync_directory
from ckptlin.errors import DiskFullError

__all__ = ["PARTIAL_DIR", "StoreFiles"]

# Files on their way; on the store's own file system, so that a rename ends them.
PARTIAL_DIR = ".partial"


class StoreFiles:
    """Keys such as ``weights/lm_head.weight/c/0/3/0`` as files below a root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._touched: set[Path] = set()
        self._made: set[Path] = set()
        self._serial = itertools.count()  # next() is atomic under the GIL

    def read(self, key: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

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
        target = self.root / key
        partial = self.root / PARTIAL_DIR / str(next(self._serial))
        try:
            self._make(partial.parent)
            self._make(target.parent)
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if is_disk_full(error):
                raise self._disk_full(key, data) from error
            raise
        self._touched.add(target.parent)

    def append(self, fd: int, data: bytes, key: str) -> None:
        """Append a line to an open file in one call; DiskFullError if the disk is full."""
        try:
            os.write(fd, data)
        except OSError as error:
            if is_disk_full(error):
                raise self._disk_full(key, data) from error
            raise

    def remove(self, key: str) -> None:
        """Remove a file if it is there."""
        (self.root / key).unlink(missing_ok=True)

    def remove_tree(self, key: str) -> None:
        """Remove everything below a key if it is there."""
        path = self.root / key
        if path.is_dir():
            shutil.rmtree(path)
            self._made = {made for made in self._made if not made.is_relative_to(path)}

    def list_below(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the key and size of every file below a key."""
        for directory, _, names in os.walk(self.root / key):
            for name in names:
                path = Path(directory, name)
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def sync(self) -> None:
        """Make the names of all files written so far durable."""
        parents = set(self._touched)
        for directory in self._touched:
            while directory != self.root:
                directory = directory.parent
                parents.add(directory)
        for directory in sorted(parents):
            if directory.is_dir():
                sync_directory(directory)
        self._touched.clear()

    def sweep(self) -> None:
        """Remove what an interrupted writer left half-written."""
        self.remove_tree(PARTIAL_DIR)

    def _disk_full(self, key: str, data: bytes) -> DiskFullError:
        return DiskFullError(
            f"the disk is full: {self.root / key} ({len(data)} bytes) could not be written; free some space on "
            f"the file system of {self.root} and run the command again"
        )

    def _make(self, directory: Path) -> None:
        if directory not in self._made:
            directory.mkdir(parents=True, exist_ok=True)
            self._made.add(directory)
