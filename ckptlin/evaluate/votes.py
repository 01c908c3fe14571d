"""Which answers to a problem agree, as a majority vote has to know."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError
from ckptlin.grading import Completion, Grader, Voter
from ckptlin.problems import Problem

__all__ = ["NO_ANSWER", "vote_classes"]

NO_ANSWER = -1


def vote_classes(
    grader: Grader,
    completions: Sequence[Sequence[Completion]],
    problems: Sequence[Problem],
    scores: Sequence[npt.ArrayLike],
) -> list[np.ndarray[Any, Any]] | None:
    """Number the answers to each problem so that those that agree have one number.

    All right answers agree.  Wrong ones agree if their normal form is the same, or else if the grader finds one
    the same as the answer that stands for a class, its first; so there is no comparison of all with all.

    Parameters
    ----------
    grader : Grader
        The one that has given the scores.
    completions : sequence of sequence of Completion
        Of each problem; problems may have different numbers of them.
    problems : sequence of Problem
    scores : sequence of array_like
        ``(num_samples,)`` of each problem; 1 is right.

    Returns
    -------
    list of numpy.ndarray or None
        ``(num_samples,) int64`` of each problem: 0 for right answers where there are any, then in the order in
        which they come; -1 for no answer.  None if the grader knows no answers that can agree, as of programs.

    Raises
    ------
    InputError
        If there are not as many scores as completions.
    GradingError
        If a process that compares cannot be started.
    """
    if not isinstance(grader, Voter):
        return None
    right = [(np.asarray(of_problem) == 1).tolist() for of_problem in scores]
    if list(map(len, completions)) != list(map(len, right)) or len(completions) != len(problems):
        raise InputError(
            f"{sum(map(len, right))} scores do not fit {sum(map(len, completions))} completions of "
            f"{len(problems)} problems; each completion needs one"
        )
    answers = iter(
        grader.answers(
            [completion for given in completions for completion in given],
            [problem for problem, given in zip(problems, completions, strict=True) for _ in given],
        )
    )
    questions = [_Question([next(answers) for _ in of_problem], of_problem) for of_problem in right]
    # All problems at once: in each round the first answer left stands for a class, and takes those that agree.
    while open_questions := [question for question in questions if question.left]:
        pairs = [pair for question in open_questions for pair in question.pairs()]
        agreed = iter(grader.agree(pairs))
        for question in open_questions:
            question.settle([next(agreed) for _ in question.pairs()])
    return [np.array(question.classes(), dtype=np.int64) for question in questions]


class _Question:
    """The answers to one problem."""

    def __init__(self, answers: Sequence[str | None], right: Sequence[bool]) -> None:
        self._answers = answers
        self._right = right
        self._first_wrong = int(any(right))
        self._classes: dict[str, int] = {}
        self._num_classes = self._first_wrong
        wrong = (answer for answer, is_right in zip(answers, right, strict=True) if not is_right)
        self.left = [answer for answer in dict.fromkeys(wrong) if answer is not None]

    def pairs(self) -> list[tuple[str, str]]:
        return [(self.left[0], other) for other in self.left[1:]]

    def settle(self, agreed: Sequence[bool]) -> None:
        first, *others = self.left
        members = [first, *(other for other, same in zip(others, agreed, strict=True) if same)]
        self._classes |= dict.fromkeys(members, self._num_classes)
        self._num_classes += 1
        self.left = [other for other, same in zip(others, agreed, strict=True) if not same]

    def classes(self) -> list[int]:
        return [
            0 if is_right else NO_ANSWER if answer is None else self._classes[answer]
            for answer, is_right in zip(self._answers, self._right, strict=True)
        ]
