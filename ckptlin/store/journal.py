"""The journal of finished chunks, by which a writer goes on where a killed one stopped."""

import math
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from ckptlin.atomic import is_disk_full
from ckptlin.errors import DiskFullError
from ckptlin.store.files import StoreFiles

__all__ = ["JOURNAL", "FileJournal", "Journal", "SegmentJournal"]

JOURNAL = ".journal"
# A segment is put when it has so many lines, or is so old at the next one; what it would have told is written
# again.
_SEGMENT_LINES, _SEGMENT_S = 32, 10.0


class Journal(Protocol):
    """Lines that survive the process.  `append` is thread-safe."""

    def exists(self) -> bool:
        """Tell whether there is one."""

    def read(self) -> list[str]:
        """Return the lines; the last may be cut short."""

    def open(self) -> None:
        """Begin to append, to what is there."""

    def append(self, line: str) -> None:
        """Append a line; ValueError if the journal is not open."""

    def close(self) -> None:
        """End appending."""

    def remove(self) -> None:
        """Remove it if it is there."""


class FileJournal:
    """A `Journal` in a file, which every line is appended to in one call.

    Raises
    ------
    DiskFullError
        From `append`, if the disk is full.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / JOURNAL
        self._fd: int | None = None

    def exists(self) -> bool:
        """Tell whether there is one."""
        return self._path.exists()

    def read(self) -> list[str]:
        """Return the lines; the last may be cut short."""
        return self._path.read_text().split("\n") if self._path.exists() else []

    def open(self) -> None:
        """Begin to append, to what is there."""
        is_new = not self._path.exists()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if not is_new:
            self.append("")  # a line that a killed writer had begun must not swallow the next one

    def append(self, line: str) -> None:
        """Append a line; ValueError if the journal is not open."""
        if self._fd is None:
            raise _closed()
        data = f"{line}\n".encode()
        try:
            os.write(self._fd, data)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: {self._path} ({len(data)} bytes) could not be written; free some space "
                    f"on the file system of {self._path.parent} and run the command again"
                ) from error
            raise

    def close(self) -> None:
        """End appending."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove it if it is there."""
        self._path.unlink(missing_ok=True)


class SegmentJournal:
    """A `Journal` in objects ``.journal/00000000`` and following, as none can be appended to."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._serial: int | None = None
        self._lines: list[str] = []
        self._put_at = -math.inf

    def exists(self) -> bool:
        """Tell whether there is one."""
        return bool(self._files.names(JOURNAL))

    def read(self) -> list[str]:
        """Return the lines."""
        segments = self._files.map(self._files.read, (f"{JOURNAL}/{name}" for name in self._names()))
        return [line for data in segments if data for line in data.decode(errors="replace").splitlines()]

    def open(self) -> None:
        """Begin to append, to what is there."""
        names = self._names()
        self._serial = int(names[-1]) + 1 if names else 0

    def append(self, line: str) -> None:
        """Append a line; ValueError if the journal is not open."""
        with self._lock:
            if self._serial is None:
                raise _closed()
            self._lines.append(line)
            if len(self._lines) >= _SEGMENT_LINES or time.monotonic() - self._put_at > _SEGMENT_S:
                self._put()

    def close(self) -> None:
        """End appending."""
        with self._lock:
            if self._serial is not None:
                self._put()
            self._serial = None

    def remove(self) -> None:
        """Remove it if it is there."""
        self._files.remove_tree(JOURNAL)

    def _names(self) -> list[str]:
        return sorted(name for name in self._files.names(JOURNAL) if name.isdigit())

    def _put(self) -> None:
        lines, self._lines = self._lines, []
        if lines and self._serial is not None:
            self._files.write(f"{JOURNAL}/{self._serial:08d}", "\n".join(lines).encode())
            self._serial += 1
            self._put_at = time.monotonic()


def _closed() -> ValueError:
    return ValueError("the journal is closed: chunks are written between `begin` and `commit`")
