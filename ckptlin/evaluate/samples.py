"""Samples on disk: a line of JSON each, written when it comes, so that a kill loses none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptlin.errors import InputError
from ckptlin.evaluate.json_lines import LineFile, read_lines, typed

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
        self.done: set[tuple[str, int]] = set()
        self.num_tokens = 0
        self._file = LineFile(path, "samples")
        try:
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
        self._file.append([sample.to_dict() for sample in samples])
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
    return read_lines(path, _parse, what="sample", expected=f"an object with {', '.join(_FIELDS)}")


def _parse(row: Any) -> Sample:
    return Sample(
        problem_id=typed(row["id"], str),
        sample=typed(row["sample"], int),
        seed=typed(row["seed"], int),
        text=typed(row["text"], str),
        finished=typed(row["finished"], bool),
        token_ids=tuple(typed(row["token_ids"], list)),
    )
