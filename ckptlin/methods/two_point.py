"""The straight line through two checkpoints."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps

__all__ = ["two_point"]


def two_point(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Extend the line through the first and the last checkpoint.

    ŵ(s) = w_b + α(w_e − w_b), α = (s − s_b)/(s_e − s_b): weight extrapolation of arXiv 2601.04537, and ExPO
    (arXiv 2404.16792) with α > 1.

    Examples
    --------
    >>> two_point(np.array([0.0, 50.0, 100.0]), 150.0)
    array([-0.5,  0. ,  1.5])
    """
    check_steps("two-point", steps)
    alpha = (target - steps[0]) / (steps[-1] - steps[0])
    coefficients = np.zeros(steps.size)
    coefficients[0], coefficients[-1] = 1.0 - alpha, alpha
    return coefficients
