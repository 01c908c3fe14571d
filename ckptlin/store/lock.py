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
        If another process holds it.
    """
    import fcntl

    fd = os.open(root / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(
                f"another process is writing to {location}; wait until it has finished, then run this again"
            ) from None
        yield
    finally:
        os.close(fd)
