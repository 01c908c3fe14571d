"""Sums with their solutions as a model takes them: to learn from, and to be scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.problems import Problem, make_sum
from ckptlin.problems.sums import END

__all__ = ["EncodedProblems", "encode", "longest_completion"]

_IGNORED = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True)
class EncodedProblems:
    """Problems as a model takes them.

    Attributes
    ----------
    input_ids : numpy.ndarray
        ``(num_problems, length) int64``, problem, solution and end, padded.
    labels : numpy.ndarray
        ``(num_problems, length) int64``: the tokens of solutions and ends; what is not scored is -100.
    """

    input_ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(problems: Sequence[Problem], tokenizer: Any) -> EncodedProblems:
    """Encode sums of one number of terms with their solutions, all to the length of the longest there is."""
    num_terms = problems[0].problem.count("+") + 1
    length = 2 * num_terms + longest_completion(num_terms)
    texts = [f"{problem.problem}{problem.solution}{END}" for problem in problems]
    # Engines load tokenizers that pad on the left, which prompts to be continued need.
    padded = tokenizer(texts, padding="max_length", max_length=length, padding_side="right")
    ids = np.array(padded["input_ids"], np.int64)
    positions = np.arange(length)
    starts = np.array([len(problem.problem) for problem in problems])[:, None]
    ends = np.array([len(text) for text in texts])[:, None]
    return EncodedProblems(ids, np.where((positions >= starts) & (positions < ends), ids, _IGNORED))


def longest_completion(num_terms: int) -> int:
    """Return how many tokens the longest right answer has, its end included.

    Examples
    --------
    >>> longest_completion(5)  # 18;27;36;45#
    12
    """
    return len(f"{make_sum([9] * num_terms).answer}{END}")
