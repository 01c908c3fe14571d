"""The files of a store in an object store, or whatever else fsspec writes to."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ckptlin.errors import CkptlinError, StoreError
from ckptlin.store.files import StoreFiles
from ckptlin.store.local_files import LocalFiles
from ckptlin.urls import filesystem_of, is_url, local_path

__all__ = ["UrlFiles", "open_files"]

T = TypeVar("T")
R = TypeVar("R")

# Objects are put while the next ones are computed: as many at once, and as many bytes, or one object.
_NUM_PUTS = 8
_MAX_BYTES_BEHIND = 64 << 20
# Small requests, each of which waits tens of milliseconds for its answer.
_NUM_REQUESTS = 16


class UrlFiles:
    """Keys as objects below a URL: a `ckptlin.store.files.StoreFiles`.

    An object is put in one request, after which every reader sees it.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/run.store``.
    is_remote : bool
        Whether this is a copy for a task in another process: `write_behind` then waits for the answer.

    Raises
    ------
    InputError
        If the protocol is not known, or the package that speaks it is not installed.
    StoreError
        From any method: if access is denied, or the service cannot be reached.
    """

    # An object lies in memory until it is put, and once more in its request.
    behind_bytes = 2 * _MAX_BYTES_BEHIND

    def __init__(self, url: str, *, is_remote: bool = False) -> None:
        self.url = url
        self._is_remote = is_remote
        self._filesystem, path = filesystem_of(url)
        self._root = path.rstrip("/")
        self._threads: ThreadPoolExecutor | None = None
        self._bytes_behind = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), is_remote=True), (self.url,)

    def where(self, key: str) -> str:
        """Return the URL of a key."""
        return f"{self.url}/{key}" if key else self.url

    def generation(self) -> None:
        """Return nothing: a store at a URL is never exchanged."""

    def read(self, key: str) -> bytes | None:
        """Return an object's content, None if there is no such object."""
        data: bytes | None = self._unless_missing(key, self._filesystem.cat_file)
        return data

    def prefetch(self, key: str) -> None:
        """Do nothing: there is no cache to read into."""

    def exists(self, key: str) -> bool:
        """Tell whether there is an object, or something below the key."""
        return self._unless_missing(key, self._filesystem.info) is not None

    def names(self, key: str) -> list[str]:
        """List what is right below a key; empty if there is nothing."""
        path = self._path_of(key)
        found = self._unless_missing(key, partial(self._filesystem.ls, detail=False)) or []
        # An object store may hold an empty object that stands for the directory, and lists it in itself.
        return [name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != path.strip("/")]

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, None if there is no such object."""
        info = self._unless_missing(key, self._filesystem.info)
        return None if info is None or info["type"] == "directory" else int(info["size"])

    def tail(self, key: str, num_bytes: int) -> bytes:
        """Return the last bytes of an object."""
        size = self.size(key) or 0
        read = partial(self._filesystem.cat_file, start=max(size - num_bytes, 0), end=size)
        return self._unless_missing(key, read) or b""

    def write(self, key: str, data: bytes) -> None:
        """Put an object; whatever was there under the key stays until this one is there whole."""
        with self._explained(key, "written"):
            self._filesystem.pipe_file(self._path_of(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Put an object if there is none, False if there is; in one step, where the service can."""
        with self._explained(key, "written"):
            try:
                self._filesystem.pipe_file(self._path_of(key), data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):
                if self.exists(key):
                    return False
                self._filesystem.pipe_file(self._path_of(key), data)
        return True

    def write_behind(self, key: str, data: bytes, done: Callable[[], None] | None = None) -> None:
        """Write an object like `write`, but leave the waiting to another thread.

        ``done`` is called when the object is there.  `flush` waits for all; an error of an object that was
        written before is raised here or there.
        """
        if self._is_remote:
            self.write(key, data)
            if done is not None:
                done()
            return
        num_bytes = len(data)
        with self._changed:
            self._changed.wait_for(
                lambda: not self._bytes_behind or self._bytes_behind + num_bytes <= _MAX_BYTES_BEHIND
            )
            self._raise_failure()
            self._bytes_behind += num_bytes
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_NUM_PUTS, thread_name_prefix="ckptlin-put")
            threads = self._threads

        def finish() -> None:
            try:
                self.write(key, data)
                if done is not None:
                    done()
            except BaseException as error:  # noqa: BLE001 (raised in the thread that writes)
                self._failure = self._failure or error
            finally:
                with self._changed:
                    self._bytes_behind -= num_bytes
                    self._changed.notify_all()

        threads.submit(finish)

    def flush(self) -> None:
        """Wait until everything that was written is there; raise what went wrong."""
        with self._changed:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        self._raise_failure()

    def note(self, key: str) -> None:
        """Do nothing: what is there is durable."""

    def sync(self) -> None:
        """Wait until everything that was written is there."""
        self.flush()

    def sync_names(self, *keys: str) -> None:
        """Do nothing: what is there is durable."""

    def sweep(self) -> None:
        """Do nothing: no object is there in part."""

    def remove(self, key: str) -> None:
        """Remove an object if it is there."""
        self._unless_missing(key, self._filesystem.rm_file, "removed")

    def remove_tree(self, key: str) -> None:
        """Remove an object, or everything below a key, if it is there."""
        # By name, one by one: `rm` of fsspec would read brackets in the name of a tensor as a pattern.
        self.map(self.remove, [name for name, _ in self.list_below(key)])

    def exchange(self, first: str, second: str) -> bool:
        """Return False: objects have no directories that could be exchanged."""
        return False

    def move(self, source: str, target: str) -> None:
        """Copy what is below a key to another one, inside the service, and remove it."""

        def copy(key: str) -> None:
            new = target + key.removeprefix(source)
            with self._explained(new, "written"):
                self._filesystem.cp_file(self._path_of(key), self._path_of(new))

        self.map(copy, [key for key, _ in self.list_below(source)])
        self.remove_tree(source)

    def list_below(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the key and size of every object at or below a key."""
        found = self._unless_missing(key, partial(self._filesystem.find, detail=True)) or {}
        prefix = self._root.strip("/") + "/"
        for name, info in found.items():
            yield name.strip("/").removeprefix(prefix), int(info["size"])

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function that reads or writes objects to each item, many at once; results are in order."""
        with ThreadPoolExecutor(_NUM_REQUESTS, thread_name_prefix="ckptlin-request") as pool:
            return list(pool.map(function, items))

    def _path_of(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _unless_missing(self, key: str, call: Callable[[str], Any], verb: str = "read") -> Any:
        with self._explained(key, verb):
            try:
                return call(self._path_of(key))
            except FileNotFoundError:
                return None

    @contextmanager
    def _explained(self, key: str, verb: str) -> Iterator[None]:
        """Turn what a file system raises into an error that names the URL."""
        try:
            yield
        except (CkptlinError, MemoryError):
            raise
        except Exception as error:  # botocore, aiohttp and google.auth have errors of their own
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise StoreError(
                f"{self.where(key)} cannot be {verb}: {reason}; check the address, the credentials and "
                "the endpoint"
            ) from error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def open_files(location: str | os.PathLike[str]) -> StoreFiles:
    """Return the files of a store at a path or URL; nothing is looked at yet."""
    return UrlFiles(str(location).rstrip("/")) if is_url(location) else LocalFiles(local_path(location))
