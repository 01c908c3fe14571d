"""File descriptors for positional reads: opened on first use, few at a time, shared by threads."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OpenFiles", "read_fully"]

# Linux reads at most 2**31 - 4096 bytes in a call and says so; macOS refuses more than 2**31 - 1.
_MAX_READ_BYTES = 1 << 30


def read_fully(fd: int, offset: int, out: memoryview) -> int:
    """Fill ``out`` from a file, from byte ``offset`` on; return the bytes read, fewer only at the file's end.

    The file position is neither used nor moved, so that threads may share the descriptor.
    """
    done = 0
    while done < len(out):
        count = os.preadv(fd, [out[done : done + _MAX_READ_BYTES]], offset + done)
        if count == 0:
            break
        done += count
    return done


@dataclass(slots=True)
class _Entry:
    fd: int
    num_users: int = 0


class OpenFiles:
    """A pool of read-only descriptors, the least recently used closed first.

    Parameters
    ----------
    limit : int
        Idle descriptors that stay open.  Those in use come on top: at most one a reading thread.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Path, _Entry] = OrderedDict()
        self._is_closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    @contextmanager
    def borrow(self, path: Path) -> Iterator[int]:
        """Give a descriptor of the file, which stays open at least until the block ends.

        Raises
        ------
        ValueError
            If the pool was closed.
        OSError
            If the file cannot be opened.
        """
        with self._lock:
            self.check_open(path)
            entry = self._entries.get(path)
            if entry is None:
                entry = self._entries[path] = _Entry(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            entry.num_users += 1
            self._entries.move_to_end(path)
        try:
            yield entry.fd
        finally:
            with self._lock:
                entry.num_users -= 1
                self._close_idle(0 if self._is_closed else self._limit)

    def check_open(self, what: object) -> None:
        """Raise ValueError if the pool was closed."""
        if self._is_closed:
            raise ValueError(f"{what} cannot be read: its checkpoint was closed")

    def close(self) -> None:
        """Close all descriptors; those in use when their reader is done."""
        with self._lock:
            self._is_closed = True
            self._close_idle(0)

    def _close_idle(self, keep: int) -> None:
        idle = [path for path, entry in self._entries.items() if entry.num_users == 0]
        for path in idle[: max(0, len(self._entries) - keep)]:
            os.close(self._entries.pop(path).fd)
