"""Files of JSON lines that grow: what was appended is on the disk, and what a kill cut off is taken away."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ckptlin.atomic import is_disk_full, sync_directory
from ckptlin.errors import DiskFullError, InputError

__all__ = ["LineFile", "read_lines", "typed"]

T = TypeVar("T")


class LineFile:
    """A file of JSON lines, opened to append to it; a context manager.

    Parameters
    ----------
    path : Path
        Made if it is not there; its directory must be.
    what : str
        What its lines are, for messages: ``"samples"``.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        is_new = not path.exists()
        self._file = path.open("ab")
        try:
            if is_new:
                sync_directory(path.parent)
            else:
                _cut_partial_line(path)
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a line for each row; they are on the disk when this returns.

        Raises
        ------
        DiskFullError
            If there is no room for them; those before are kept.
        """
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        try:
            # Surrogates, which tokenizers of bytes can produce, are no UTF-8.
            self._file.write(lines.encode(errors="replace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: {self._what} could not be written to {self.path}; free some space "
                    "and give "
                    "the same command again"
                ) from error
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def read_lines(path: Path, parse: Callable[[Any], T], *, what: str, expected: str) -> Iterator[T]:
    """Read and parse the lines of a file one by one; a last line without an end is left out.

    Parameters
    ----------
    path : Path
    parse : callable
        Makes something of a line's data, or raises ValueError, KeyError or TypeError.
    what, expected : str
        What a line is and what it should have, for messages: ``"sample"`` and ``"an object with id, ..."``.

    Raises
    ------
    InputError
        If a line is something else; it names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield parse(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} of {path} is no {what} ({type(error).__name__}: {error}); expected "
                    f"{expected}"
                ) from error


def typed(value: Any, kind: type) -> Any:
    """Return a value if it is of this type; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _cut_partial_line(path: Path) -> None:
    """Cut off what follows the last end of a line."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
