"""The files of a store: keys below a root, read whole, written whole or not at all."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["StoreFiles"]

T = TypeVar("T")
R = TypeVar("R")


class StoreFiles(Protocol):
    """Keys such as ``weights/lm_head.weight/c/0/3/0`` on a disk or in an object store.

    Threads may use distinct keys at the same time.  A pickled copy leads to the same files; what it has
    written is durable when the call returns.

    Attributes
    ----------
    behind_bytes : int
        Memory that `write_behind` may take beyond its caller's.
    """

    @property
    def behind_bytes(self) -> int:
        """Memory that `write_behind` may take beyond its caller's."""

    def where(self, key: str) -> str:
        """Return the path or URL of a key."""

    def generation(self) -> int | None:
        """Return what changes when another store takes this one's place."""

    def read(self, key: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""

    def prefetch(self, key: str) -> None:
        """Have the system read a file into its cache, where it can, without waiting for it."""

    def exists(self, key: str) -> bool:
        """Tell whether there is a file, or something below the key."""

    def names(self, key: str) -> list[str]:
        """List what is right below a key; empty if there is nothing."""

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None if there is no such file."""

    def tail(self, key: str, num_bytes: int) -> bytes:
        """Return the last bytes of a file."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file: readers see what was there before, or all of it."""

    def write_behind(self, key: str, data: bytes, done: Callable[[], None] | None = None) -> None:
        """Write a file like `write`, but leave the waiting to another thread.

        ``done`` is called when the file is durable and has its name.  `flush` waits for all; an error of a
        file that was written before is raised here or there.
        """

    def flush(self) -> None:
        """Wait until everything that was written is durable; raise what went wrong."""

    def note(self, key: str) -> None:
        """Note that another process has written a file, so that `sync` makes its name durable."""

    def sync(self) -> None:
        """Make all files written so far and their names durable."""

    def sync_names(self, *keys: str) -> None:
        """Make the names right below some directories durable."""

    def sweep(self) -> None:
        """Remove what an interrupted writer left half-written."""

    def remove(self, key: str) -> None:
        """Remove a file if it is there."""

    def remove_tree(self, key: str) -> None:
        """Remove a file, or everything below a key, if it is there."""

    def exchange(self, first: str, second: str) -> bool:
        """Exchange two directories in one step; False where that does not exist."""

    def move(self, source: str, target: str) -> None:
        """Give a directory another name, at which there is nothing."""

    def list_below(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the key and size of every file below a key."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function that reads or writes files to each item, many at once where that saves time."""
