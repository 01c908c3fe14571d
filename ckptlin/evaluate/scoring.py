"""Answers to problems, graded: a score for each, what each answers, and which of them agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.evaluate.votes import vote_classes
from ckptlin.grading import Completion, Grader, Voter
from ckptlin.problems import Problem

__all__ = ["GradedAnswers", "grade_answers"]


@dataclass(frozen=True)
class GradedAnswers:
    """What a grader found of the answers to each problem.

    Attributes
    ----------
    scores : tuple of tuple of float
        From 0 to 1.
    votes : list of numpy.ndarray, or None
        ``(num_samples,) int64`` of each problem, see `ckptlin.evaluate.votes.vote_classes`.
    answers : tuple of tuple of (str or None), or None
        What each answers; None where the grader knows no answers.
    num_empty : int
        Without text, which count as wrong by any grader.
    notes : tuple of str
        What was out of the ordinary.
    """

    scores: tuple[tuple[float, ...], ...]
    votes: list[np.ndarray[Any, Any]] | None
    answers: tuple[tuple[str | None, ...], ...] | None
    num_empty: int
    notes: tuple[str, ...]


def grade_answers(
    grader: Grader, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]]
) -> GradedAnswers:
    """Grade the answers to each of some problems; problems may have different numbers of them.

    Raises
    ------
    InputError
        If a problem lacks what it is graded by.
    GradingError
        If the grader cannot start, or a user's function raises, or returns no score.
    """
    grader.check(problems)
    flat = [completion for given in completions for completion in given]
    asked = [problem for problem, given in zip(problems, completions, strict=True) for _ in given]
    # Without a text there is nothing that could be right.
    there = [i for i, completion in enumerate(flat) if completion.text.strip()]
    marks = [0.0] * len(flat)
    for i, score in zip(there, grader.grade([flat[i] for i in there], [asked[i] for i in there]), strict=True):
        marks[i] = score
    scores = _by_problem(marks, completions)
    answers = _by_problem(grader.answers(flat, asked), completions) if isinstance(grader, Voter) else None
    votes = vote_classes(grader, completions, problems, scores)
    num_empty = len(flat) - len(there)
    notes = list(grader.notes)
    if num_empty:
        notes.append(f"{num_empty:,} of {len(flat):,} answers are empty; they count as wrong")
    return GradedAnswers(scores, votes, answers, num_empty, tuple(notes))


def _by_problem(values: Sequence[Any], completions: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    left = iter(values)
    return tuple(tuple(next(left) for _ in given) for given in completions)
