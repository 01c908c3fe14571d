"""One process at a time works in a directory of results."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptlin.errors import InputError

__all__ = ["directory_lock"]


@contextmanager
def directory_lock(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a directory; the system drops it when the process ends.

    Parameters
    ----------
    path : Path
    doing : str
        What another process that holds it does, for the error: ``"training"``.

    Raises
    ------
    InputError
        If another process holds it.
    """
    with (path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is {doing} {path}; wait for it, or stop it") from None
        yield
