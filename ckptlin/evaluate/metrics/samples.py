"""What the metrics are made of: scores of each problem's samples, checked once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError

__all__ = ["checked_like", "checked_scores"]


def checked_scores(scores: Sequence[npt.ArrayLike]) -> list[np.ndarray[Any, Any]]:
    """Return each problem's scores as ``(num_samples,) float64``.

    Raises
    ------
    InputError
        If there is no problem, a problem has no sample, or a score is not from 0 to 1.
    """
    arrays = [np.asarray(of_problem, np.float64) for of_problem in scores]
    if not arrays:
        raise InputError("there is no problem to measure anything on")
    for i, of_problem in enumerate(arrays):
        if of_problem.ndim != 1 or not of_problem.size:
            raise InputError(f"problem {i} needs a row of scores, at least one, not shape {of_problem.shape}")
        if not ((of_problem >= 0.0) & (of_problem <= 1.0)).all():
            raise InputError(f"problem {i} has a score that is not from 0 to 1")
    return arrays


def checked_like(
    values: Sequence[npt.ArrayLike], scores: Sequence[np.ndarray[Any, Any]], *, name: str
) -> list[np.ndarray[Any, Any]]:
    """Return something that is said of each sample, as arrays of the scores' shapes.

    Raises
    ------
    InputError
        If it is not said of the same problems and samples.
    """
    arrays = [np.asarray(of_problem) for of_problem in values]
    if len(arrays) != len(scores):
        raise InputError(f"{name} is given for {len(arrays)} problems, and scores for {len(scores)}")
    for i, (of_problem, expected) in enumerate(zip(arrays, scores, strict=True)):
        if of_problem.shape != expected.shape:
            raise InputError(
                f"{name} of problem {i} has shape {of_problem.shape}, and its scores {expected.shape}"
            )
    return arrays
