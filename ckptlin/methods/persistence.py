"""The last checkpoint: what every prediction is measured against."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps

__all__ = ["hold_unmoved", "persistence"]


def persistence(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
) -> np.ndarray[Any, Any]:
    """Keep the last checkpoint, whatever the target.

    ŵ(s) = w_T: the baseline of every skill score, whose own skill is 0 by definition.

    Examples
    --------
    >>> persistence(np.array([0.0, 50.0, 100.0]), 150.0)
    array([0., 0., 1.])
    """
    check_steps("persistence", steps, 1)
    coefficients = np.zeros(steps.size)
    coefficients[-1] = 1.0
    return coefficients


def hold_unmoved(coefficients: np.ndarray[Any, Any], gram: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give tensors that never moved the last checkpoint.

    All their checkpoints are the same, so any coefficients would do; these make it exact, and defined where a
    method divides by G.

    Parameters
    ----------
    coefficients : numpy.ndarray
        ``(..., T) float64``.
    gram : numpy.ndarray
        ``(..., T, T) float64``, of the same leading shape.
    """
    moved = (np.diagonal(gram, axis1=-2, axis2=-1) > 0.0).any(axis=-1, keepdims=True)
    last = np.zeros(coefficients.shape[-1])
    last[-1] = 1.0
    return np.where(moved, coefficients, last)
