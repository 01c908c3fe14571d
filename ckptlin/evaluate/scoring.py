"""Answers to problems, graded: a score for each, which of them agree, and what was out of the ordinary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.evaluate.votes import vote_classes
from ckptlin.grading import Completion, Grader
from ckptlin.problems import Problem

__all__ = ["GradedAnswers", "grade_answers"]


@dataclass(frozen=True)
class GradedAnswers:
    """What a grader found.

    Attributes
    ----------
    scores : numpy.ndarray
        ``(num_problems, num_samples) float64``, from 0 to 1.
    votes : numpy.ndarray or None
        ``(num_problems, num_samples) int64``, see `ckptlin.evaluate.votes.vote_classes`.
    notes : tuple of str
        The grader's.
    """

    scores: np.ndarray[Any, Any]
    votes: np.ndarray[Any, Any] | None
    notes: tuple[str, ...]


def grade_answers(
    grader: Grader, problems: Sequence[Problem], answers: Sequence[Sequence[Completion]]
) -> GradedAnswers:
    """Grade as many answers to each of some problems.

    Raises
    ------
    GradingError
        If a user's function raises, or returns no score.
    """
    flat = [completion for row in answers for completion in row]
    asked = [problem for problem, row in zip(problems, answers, strict=True) for _ in row]
    scores = np.array(grader.grade(flat, asked), np.float64).reshape(len(problems), -1)
    return GradedAnswers(scores, vote_classes(grader, answers, problems, scores), tuple(grader.notes))
