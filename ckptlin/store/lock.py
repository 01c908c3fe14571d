"""One writer at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptlin.errors import StoreLockedError

__all__ = ["LOCK_FILE", "writer_lock"]

LOCK_FILE = ".lock"


@contextmanager
def writer_lock(root: Path, location: str) -> Iterator[None]:
    """Hold the writer's lock of the store in ``root``; the system drops it when the process ends.

    Raises
    ------
    StoreLockedError
        If another process holds it, or has just put another store in the place of this one.
    """
    import fcntl

    locked = StoreLockedError(
        f"another process is writing to {location}; wait until it has finished, then run this again"
    )
    path = root / LOCK_FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise locked from None
        # Between the two calls the directory may have got another name, and the lock with it.
        if not _is_at(path, fd):
            raise locked
        yield
    finally:
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
