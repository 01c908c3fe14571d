"""Exact match: the text is the answer, and nothing else."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ckptlin.grading.grader import Completion, check_answers, check_lengths
from ckptlin.problems.problem import Problem

__all__ = ["ExactGrader"]


class ExactGrader:
    """Score 1 where the text equals the answer and was finished, 0 elsewhere.

    Parameters
    ----------
    strip : bool
        Leave white space around text and answer out of account.
    require_finished : bool
        Whether the answer must be followed by the end of the sequence.

    Examples
    --------
    >>> problem = Problem("1+1=", "2")
    >>> given = [Completion("2", True), Completion("2", False), Completion(" 2", True)]
    >>> ExactGrader().grade(given, [problem] * 3)
    [1.0, 0.0, 0.0]
    """

    name = "exact"

    def __init__(self, *, strip: bool = False, require_finished: bool = True) -> None:
        self._strip = strip
        self._require_finished = require_finished

    @property
    def notes(self) -> list[str]:
        """Nothing: every completion can be compared."""
        return []

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `InputError` if a problem has no answer."""
        check_answers(problems, self.name)

    def grade(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
        """Return 1 or 0 for each completion."""
        check_lengths(completions, problems)
        check_answers(problems, self.name)
        return [
            float(self._is_right(completion, problem.answer or ""))
            for completion, problem in zip(completions, problems, strict=True)
        ]

    def answers(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[str | None]:
        """Return the whole text of each; None if it is empty, or was cut off and must not be."""
        check_lengths(completions, problems)
        return [self._answer_of(completion) for completion in completions]

    def agree(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Tell that different texts are different answers."""
        return [False] * len(pairs)

    def _answer_of(self, completion: Completion) -> str | None:
        if self._require_finished and not completion.finished:
            return None
        return (completion.text.strip() if self._strip else completion.text) or None

    def _is_right(self, completion: Completion, answer: str) -> bool:
        if self._require_finished and not completion.finished:
            return False
        if self._strip:
            return completion.text.strip() == answer.strip()
        return completion.text == answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
