"""What a grader is: completions and their problems in, a score from 0 to 1 for each out."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from ckptlin.errors import GradingError, InputError
from ckptlin.problems.problem import Problem

__all__ = ["Completion", "Grader", "Voter", "check_answers", "check_lengths", "check_score"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote.

    Attributes
    ----------
    text : str
        Without special tokens.
    finished : bool
        Whether the end-of-sequence token ended it, and not the limit of its length.
    """

    text: str
    finished: bool


class Grader(Protocol):
    """Gives completions their scores; a context manager, since it may hold processes.

    Training takes the scores as rewards, and evaluation as correctness.
    """

    @property
    def name(self) -> str:
        """What it is called in records."""

    @property
    def notes(self) -> list[str]:
        """What was out of the ordinary in all it has graded, in sentences with counts, for the user."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `InputError` if a problem lacks what it is graded by; called before anything is generated."""

    def grade(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
        """Return the score of each completion for the problem at its place, from 0 to 1.

        The score does not depend on the other completions, nor on their order.

        Raises
        ------
        GradingError
            If a user's function raises, or returns no score.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Voter(Protocol):
    """A grader whose completions give answers that can agree, as a majority vote needs.

    `grade` comes first: what it could not compare with the right answer is not compared with others either.
    """

    def answers(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[str | None]:
        """Return what each completion answers, in a form in which many that are the same are the same text.

        None stands for no answer.
        """

    def agree(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Tell whether two of these answers are the same, for each pair of different texts."""


def check_lengths(completions: Sequence[Completion], problems: Sequence[Problem]) -> None:
    """Raise `InputError` unless there is a problem for each completion."""
    if len(completions) != len(problems):
        raise InputError(
            f"{len(completions)} completions were given with {len(problems)} problems; each needs its own, so "
            "a problem with several completions is given several times"
        )


def check_answers(problems: Sequence[Problem], grader: str) -> None:
    """Raise `InputError` if a problem has no answer; it names the first."""
    lacking = [problem for problem in problems if problem.answer is None]
    if lacking:
        raise InputError(
            f"the grader {grader} compares with answers, but {len(lacking):,} of {len(problems):,} problems "
            f"have none, the first of them problem {lacking[0].id}; give them answers, or choose another grader"
        )


def check_score(score: Any, function: str, problem: Problem) -> float:
    """Return a score as a float, or raise `GradingError`.

    A trainer would take NaN for an advantage of zero, and True for 1, without a word.

    Parameters
    ----------
    score : Any
        What a user's function returned.
    function : str
        Its name, for the error.
    problem : Problem
    """
    if isinstance(score, numbers.Real) and not isinstance(score, bool):
        value = float(score)
        if not math.isnan(value) and 0 <= value <= 1:
            return value
    shown = repr(score)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    raise GradingError(
        f"the reward function {function} returned {shown} for problem {problem.id}; it must return a number "
        "from 0 to 1"
    )
