"""Sums with their answers as a model takes them, for supervised training on the demo's task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.problems import Problem, make_sum
from ckptlin.problems.sums import END

__all__ = ["EncodedProblems", "encode"]

_IGNORED = -100  # what transformers leaves out of a loss


@dataclass(frozen=True)
class EncodedProblems:
    """Problems as a model takes them; a dataset for ``transformers.Trainer``.

    Attributes
    ----------
    input_ids : numpy.ndarray
        ``(num_problems, length) int64``, problem, answer and end, padded.
    labels : numpy.ndarray
        ``(num_problems, length) int64``: the tokens of answers and ends; what is not scored is -100.
    """

    input_ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def encode(problems: Sequence[Problem], tokenizer: Any) -> EncodedProblems:
    """Encode sums, all to the length of the longest that their number of terms allows."""
    longest = make_sum([9] * (problems[0].problem.count("+") + 1))
    length = len(f"{longest.problem}{longest.answer}{END}")
    texts = [f"{problem.problem}{problem.answer}{END}" for problem in problems]
    ids = np.array(tokenizer(texts, padding="max_length", max_length=length)["input_ids"], np.int64)
    positions = np.arange(length)
    starts = np.array([len(problem.problem) for problem in problems])[:, None]
    ends = np.array([len(text) for text in texts])[:, None]
    return EncodedProblems(ids, np.where((positions >= starts) & (positions < ends), ids, _IGNORED))
