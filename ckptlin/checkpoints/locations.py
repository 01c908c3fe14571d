"""Where the files of a checkpoint lie: a `pathlib.Path`, or a `UrlPath` for what fsspec reads.

A `UrlPath` has the part of `Path`'s interface that the readers use.  What it tells of names and kinds comes
from listings, each fetched once for all paths that stem from one `location_of`: the readers ask in many places
for files that are not there, and every answer of an object store takes tens of milliseconds.  Contents, sizes
and times are always asked for anew.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

from ckptlin.errors import CheckpointError, CkptlinError
from ckptlin.urls import filesystem_of, is_url, local_path

__all__ = [
    "Location",
    "UrlPath",
    "UrlStat",
    "is_same_location",
    "lexists",
    "list_matches",
    "location_of",
    "map_together",
]

T = TypeVar("T")
R = TypeVar("R")

# A range comes as bytes and is copied from there; so much at a time, to bound what lies in memory twice.
_MAX_RANGE_BYTES = 1 << 26
# Requests under way at once while a run is opened.
_NUM_REQUESTS = 16
# What file systems call the time of the last modification, and the tag that changes with the content.
_TIME_KEYS = ("LastModified", "updated", "last_modified", "mtime", "created")
_TAG_KEYS = ("ETag", "etag")
_SECOND_NS = 1_000_000_000


class UrlStat(NamedTuple):
    """Size and age of a file at a URL, under the names of `os.stat_result`.

    Attributes
    ----------
    st_size : int
        Bytes.
    st_mtime_ns : int
        Time of last modification, nanoseconds since the epoch.  Object stores know it to the second; where
        they give an ETag, the digits below the second are taken from that, so that the number changes
        whenever the content does.
    """

    st_size: int
    st_mtime_ns: int


class _Tree:
    """A file system below one URL, and the listings that were fetched of it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.filesystem, path = filesystem_of(root)
        self._root_path = path.rstrip("/")
        self._root_kind: str | None = None
        self._listings: dict[str, dict[str, str]] = {}

    def path_of(self, url: str) -> str:
        return self._root_path + url.removeprefix(self.root)

    def kind(self, url: str) -> str | None:
        """Tell ``file`` or ``directory``, None if there is nothing."""
        if url == self.root:
            if self._root_kind is None:
                with _explained(url):
                    try:
                        self._root_kind = self.filesystem.info(self.path_of(url))["type"]
                    except FileNotFoundError:
                        return None
            return self._root_kind
        parent, _, name = url.rpartition("/")
        return self.listing(parent).get(name)

    def listing(self, url: str) -> Mapping[str, str]:
        """Return the kind of each entry of a directory, by name; empty if it is none."""
        if url not in self._listings:
            self._listings[url] = self._list(url) if self.kind(url) == "directory" else {}
        return self._listings[url]

    def _list(self, url: str) -> dict[str, str]:
        path = self.path_of(url)
        with _explained(url):
            try:
                entries = self.filesystem.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        # An object store may hold an empty object that stands for the directory, and lists it in itself.
        inside = [e for e in entries if e["name"].strip("/") != path.strip("/")]
        return {e["name"].rstrip("/").rpartition("/")[2]: e["type"] for e in inside}


@total_ordering
class UrlPath:
    """A file or directory at a URL.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/run``.

    Raises
    ------
    InputError
        If the protocol is not known, or the package that speaks it is not installed.
    CheckpointError
        From any method: if access is denied, or the service cannot be reached.
    """

    def __init__(self, url: str, _tree: _Tree | None = None) -> None:
        scheme, _, rest = url.partition("://")
        self._url = f"{scheme}://{rest.rstrip('/')}"
        self._tree = _Tree(self._url) if _tree is None else _tree

    def __repr__(self) -> str:
        return f"UrlPath({self._url!r})"

    def __str__(self) -> str:
        return self._url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UrlPath) and self._url == other._url

    def __lt__(self, other: Self) -> bool:
        return self._url < other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._url,)

    def __truediv__(self, other: str) -> Self:
        parts = [part for part in other.split("/") if part not in ("", ".")]
        return type(self)("/".join([self._url, *parts]), self._tree)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Self:
        """The directory that holds this."""
        tree = None if self._url == self._tree.root else self._tree
        return type(self)(self._url.rpartition("/")[0], tree)

    def exists(self) -> bool:
        """Tell whether there is a file or directory."""
        return self._tree.kind(self._url) is not None

    def is_file(self) -> bool:
        """Tell whether this is a file."""
        return self._tree.kind(self._url) == "file"

    def is_dir(self) -> bool:
        """Tell whether this is a directory, or a prefix of objects."""
        return self._tree.kind(self._url) == "directory"

    def is_symlink(self) -> bool:
        """Tell that this is no link."""
        return False

    def iterdir(self) -> Iterator[Self]:
        """List a directory, sorted; nothing if it is none."""
        for name in sorted(self._tree.listing(self._url)):
            yield self / name

    def list_together(self, names: Iterable[str]) -> None:
        """Fetch the listings of some of the directories in this one, many at once."""
        map_together(self._tree.listing, [str(self / name) for name in names])

    def glob(self, pattern: str) -> Iterator[Self]:
        """List what matches a pattern such as ``*.pt`` or ``shards_*/*.pt``."""
        first, _, rest = pattern.partition("/")
        for entry in self.iterdir():
            if fnmatchcase(entry.name, first):
                if rest:
                    yield from entry.glob(rest)
                else:
                    yield entry

    def stat(self) -> UrlStat:
        """Ask for size and age.

        Raises
        ------
        FileNotFoundError
        """
        with _explained(self._url):
            info = self._tree.filesystem.info(self._path)
        return UrlStat(int(info["size"] or 0), _mtime_ns(info))

    def read_bytes(self) -> bytes:
        """Read a whole (small) file.

        Raises
        ------
        FileNotFoundError
        """
        with _explained(self._url):
            return bytes(self._tree.filesystem.cat_file(self._path))

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` with the file's bytes from ``offset`` on; return their number, fewer only at its end.

        Threads may read at the same time.

        Raises
        ------
        FileNotFoundError
        """
        done = 0
        while done < len(out):
            wanted = min(len(out) - done, _MAX_RANGE_BYTES)
            data = self._read_range(offset + done, wanted)
            out[done : done + len(data)] = data
            done += len(data)
            if len(data) < wanted:
                break
        return done

    @property
    def _path(self) -> str:
        return self._tree.path_of(self._url)

    def _read_range(self, start: int, num_bytes: int) -> bytes:
        try:
            with _explained(self._url):
                data = self._tree.filesystem.cat_file(self._path, start=start, end=start + num_bytes)
        except CheckpointError:
            # S3 and GCS refuse a range that begins behind the end, and each file system says so differently.
            if self.stat().st_size > start:
                raise
            return b""
        if len(data) > num_bytes:  # what a web server sends that knows no ranges: the file from its beginning
            raise CheckpointError(
                f"{self._url} cannot be read in parts: asked for {num_bytes} bytes, its server sent {len(data)}"
                "; copy the files to a local disk first"
            )
        return bytes(data)


Location: TypeAlias = Path | UrlPath


def location_of(location: "str | os.PathLike[str] | UrlPath") -> Location:
    """Return where a path or URL leads; ``file://`` leads to a local path.

    Raises
    ------
    InputError
        If the protocol of a URL is not known, or the package that speaks it is not installed.

    Examples
    --------
    >>> location_of("file:///data/run").as_posix(), location_of("memory://run/checkpoint-100") / "./actor"
    ('/data/run', UrlPath('memory://run/checkpoint-100/actor'))
    """
    if isinstance(location, UrlPath):
        return location
    return UrlPath(os.fspath(location)) if is_url(location) else local_path(location)


def lexists(location: Location) -> bool:
    """Tell whether something is there, be it a link to a file that is gone."""
    return location.exists() if isinstance(location, UrlPath) else os.path.lexists(location)


def is_same_location(first: Location, second: Location) -> bool:
    """Tell whether two locations, which exist, are one."""
    if isinstance(first, UrlPath) or isinstance(second, UrlPath):
        return first == second
    return first.samefile(second)


def list_matches(directory: Location, pattern: str) -> list[Location]:
    """List what matches a pattern in a directory, sorted."""
    if isinstance(directory, UrlPath):
        return sorted(directory.glob(pattern))
    return sorted(directory.glob(pattern))


def map_together(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply a function that waits for answers to many items at once; results and errors are in their order."""
    if not items:
        return []
    with ThreadPoolExecutor(min(len(items), _NUM_REQUESTS), thread_name_prefix="ckptlin-open") as pool:
        return list(pool.map(function, items))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a file system raises into an error that names the URL."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    except (CkptlinError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # botocore, aiohttp and google.auth have errors of their own, with no common base
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CheckpointError(
            f"{url} cannot be read: {reason}; check the address, the credentials and the endpoint"
        ) from error


def _mtime_ns(info: Mapping[str, Any]) -> int:
    time = next((info[key] for key in _TIME_KEYS if info.get(key)), 0)
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            time = 0
    mtime_ns = int((time.timestamp() if isinstance(time, datetime) else float(time)) * _SECOND_NS)
    tag = next((info[key] for key in _TAG_KEYS if info.get(key)), None)
    if tag is None:
        return mtime_ns
    digits = int.from_bytes(hashlib.blake2b(str(tag).encode(), digest_size=8).digest(), "little")
    return mtime_ns - mtime_ns % _SECOND_NS + digits % _SECOND_NS
