"""The mean of the latest checkpoints."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps

__all__ = ["lawa"]


def lawa(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    k: int = 3,
) -> np.ndarray[Any, Any]:
    """Average the last k checkpoints, whatever the target.

    ŵ = (w_{T−k+1} + … + w_T)/k: latest weight averaging (arXiv 2209.14981).  An average lies behind the last
    checkpoint; it takes noise out, and goes nowhere.

    Examples
    --------
    >>> lawa(np.array([0.0, 50.0, 100.0]), 150.0, k=2)
    array([0. , 0.5, 0.5])
    """
    check_steps("lawa", steps, k)
    coefficients = np.zeros(steps.size)
    coefficients[-k:] = 1.0 / k
    return coefficients
