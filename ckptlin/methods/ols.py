"""Ordinary least squares."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps
from ckptlin.methods.two_point import two_point

__all__ = ["anchored", "ols"]


def ols(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Extend the least-squares line through all checkpoints.

    a_t = 1/T + (s_t − s̄)(s − s̄)/S, S = Σ(s_t − s̄)²: the value of the fit at s, written in the weights.
    Through two checkpoints there is one line, and its coefficients are those of `two_point` to the last bit.

    Examples
    --------
    >>> ols(np.array([0.0, 50.0, 100.0]), 150.0).round(12)
    array([-0.66666667,  0.33333333,  1.33333333])
    """
    check_steps("ols", steps)
    if steps.size == 2:
        return two_point(steps, target, gram)
    centred = steps - steps.mean()
    coefficients: np.ndarray[Any, Any] = 1.0 / steps.size + centred * (target - steps.mean()) / (
        centred @ centred
    )
    return coefficients


def anchored(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Go on from the last checkpoint with the least-squares slope.

    ŵ(s) = w_T + slope·(s − s_T): the line of `ols`, moved so that it meets the last checkpoint.

    Examples
    --------
    >>> anchored(np.array([0.0, 50.0, 100.0]), 150.0)
    array([-0.5,  0. ,  1.5])
    """
    check_steps("anchored", steps)
    centred = steps - steps.mean()
    coefficients: np.ndarray[Any, Any] = centred * (target - steps[-1]) / (centred @ centred)
    coefficients[-1] += 1.0
    return coefficients
