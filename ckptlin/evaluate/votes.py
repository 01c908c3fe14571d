"""Which answers to a problem agree, as a majority vote has to know."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.grading import Completion, Grader, Voter
from ckptlin.problems import Problem

__all__ = ["NO_ANSWER", "vote_classes"]

NO_ANSWER = -1


def vote_classes(
    grader: Grader,
    completions: Sequence[Sequence[Completion]],
    problems: Sequence[Problem],
    scores: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any] | None:
    """Number the answers to each problem so that those that agree have one number.

    All right answers agree.  Wrong ones agree if their normal form is the same, or else if the grader finds one
    the same as the answer that stands for a class, its first; so there is no comparison of all with all.

    Parameters
    ----------
    grader : Grader
        The one that has given the scores.
    completions : sequence of sequence of Completion
        ``num_samples`` of each problem.
    problems : sequence of Problem
    scores : numpy.ndarray
        ``(num_problems, num_samples) float``; 1 is right.

    Returns
    -------
    numpy.ndarray or None
        ``(num_problems, num_samples) int64``: 0 for right answers where there are any, then in the order in
        which they come; -1 for no answer.  None if the grader knows no answers that can agree, as of programs.

    Raises
    ------
    InputError
        If the shapes do not fit together.
    GradingError
        If a process that compares cannot be started.
    """
    if not isinstance(grader, Voter):
        return None
    shape = np.shape(scores)
    if (
        len(shape) != 2
        or [len(given) for given in completions] != [shape[1]] * shape[0]
        or shape[0] != len(problems)
    ):
        raise InputError(
            f"scores of shape {shape} do not fit {len(completions)} lists of completions of {len(problems)} "
            "problems; each needs as many"
        )
    flat = grader.answers(
        [completion for given in completions for completion in given],
        [problem for problem in problems for _ in range(shape[1])],
    )
    right = np.asarray(scores) == 1
    questions = [_Question(flat[i * shape[1] : (i + 1) * shape[1]], right[i].tolist()) for i in range(shape[0])]
    # All problems at once: in each round the first answer left stands for a class, and takes those that agree.
    while open_questions := [question for question in questions if question.left]:
        pairs = [pair for question in open_questions for pair in question.pairs()]
        agreed = iter(grader.agree(pairs))
        for question in open_questions:
            question.settle([next(agreed) for _ in question.pairs()])
    return np.array([question.classes() for question in questions], dtype=np.int64).reshape(shape)


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
