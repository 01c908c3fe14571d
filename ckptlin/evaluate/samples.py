"""Samples on disk: a line of JSON each, written when it comes, so that a kill loses none."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptlin.atomic import is_disk_full, sync_directory
from ckptlin.errors import DiskFullError, InputError

__all__ = ["Sample", "SampleFile", "read_samples"]

_FIELDS = ("id", "sample", "seed", "text", "finished", "num_tokens", "token_ids")


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer of a model.

    Attributes
    ----------
    problem_id : str
    sample : int
        Its number among the answers to this problem, from 0.
    seed : int
        That it was drawn with.
    text : str
        Without special tokens.
    finished : bool
        Whether its end was written, and not the limit of its length reached.
    token_ids : tuple of int
        All that was generated, the end included.
    """

    problem_id: str
    sample: int
    seed: int
    text: str
    finished: bool
    token_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as a line of a file has it."""
        return {
            "id": self.problem_id,
            "sample": self.sample,
            "seed": self.seed,
            "text": self.text,
            "finished": self.finished,
            "num_tokens": len(self.token_ids),
            "token_ids": list(self.token_ids),
        }


class SampleFile:
    """The samples of one model, in a file that grows.

    A last line that a kill cut off is taken away when the file is opened.

    Parameters
    ----------
    path : Path
        Made if it is not there; its directory must be.

    Attributes
    ----------
    done : set of (str, int)
        Problem and number of every sample in the file.
    num_tokens : int
        Of all of them.

    Raises
    ------
    InputError
        If a line is no sample, or two are the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        is_new = not path.exists()
        self.done: set[tuple[str, int]] = set()
        self.num_tokens = 0
        self._file = path.open("ab")
        try:
            if is_new:
                sync_directory(path.parent)
            else:
                _cut_partial_line(path)
                for sample in read_samples(path):
                    self._note(sample)
        except BaseException:
            self._file.close()
            raise

    def append(self, samples: Sequence[Sample]) -> None:
        """Write samples; they are on the disk when this returns.

        Raises
        ------
        DiskFullError
            If there is no room for them; those before are kept.
        """
        lines = "".join(f"{json.dumps(sample.to_dict(), ensure_ascii=False)}\n" for sample in samples)
        try:
            # Surrogates, which tokenizers of bytes can produce, are no UTF-8.
            self._file.write(lines.encode(errors="replace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: samples could not be written to {self._path}; free some space and give "
                    "the same command again"
                ) from error
            raise
        for sample in samples:
            self._note(sample)

    def _note(self, sample: Sample) -> None:
        key = (sample.problem_id, sample.sample)
        if key in self.done:
            raise InputError(
                f"{self._path} has sample {sample.sample} of problem {sample.problem_id} twice; move it away"
            )
        self.done.add(key)
        self.num_tokens += len(sample.token_ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def read_samples(path: Path) -> Iterator[Sample]:
    """Read samples one by one; a last line without an end is left out.

    Raises
    ------
    InputError
        If a line is no sample; it names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                yield Sample(
                    problem_id=_typed(row["id"], str),
                    sample=_typed(row["sample"], int),
                    seed=_typed(row["seed"], int),
                    text=_typed(row["text"], str),
                    finished=_typed(row["finished"], bool),
                    token_ids=tuple(_typed(row["token_ids"], list)),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"line {number} of {path} is no sample ({type(error).__name__}: {error}); expected an "
                    f"object with {', '.join(_FIELDS)}"
                ) from error


def _typed(value: Any, kind: type) -> Any:
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
