"""Weighted least squares: late checkpoints count more."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps
from ckptlin.methods.two_point import two_point

__all__ = ["wls", "wls_anchored"]


def wls(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    decay: float = 0.7,
) -> np.ndarray[Any, Any]:
    """Extend the line that is fitted with geometric weights, the last checkpoint's the largest.

    With weights ω_t = λ^(T−t), scaled to sum to 1, s̄ = Σω_t·s_t and S = Σω_t(s_t − s̄)²,
    a_t = ω_t(1 + (s_t − s̄)(s − s̄)/S): discounted least squares (R. G. Brown, Smoothing, Forecasting and
    Prediction, 1963).  λ = 1 is `ols`; through two checkpoints there is one line, that of `two_point`.

    Examples
    --------
    >>> wls(np.array([0.0, 50.0, 100.0]), 150.0, decay=0.5).round(12)
    array([-0.46153846, -0.07692308,  1.53846154])
    """
    check_steps("wls", steps)
    if steps.size == 2:
        return two_point(steps, target, gram)
    weights, centred, mean = _weighted(steps, decay)
    square = weights @ centred**2
    coefficients: np.ndarray[Any, Any] = weights * (1.0 + centred * (target - mean) / square)
    return coefficients


def wls_anchored(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    decay: float = 0.7,
) -> np.ndarray[Any, Any]:
    """Go on from the last checkpoint with the slope of `wls`.

    ŵ(s) = w_T + slope·(s − s_T), slope = Σω_t(s_t − s̄)w_t / S: the line of `wls`, moved so that it meets the
    last checkpoint.

    Examples
    --------
    >>> wls_anchored(np.array([0.0, 50.0, 100.0]), 150.0, decay=0.5).round(12)
    array([-0.38461538, -0.23076923,  1.61538462])
    """
    check_steps("wls-anchored", steps)
    weights, centred, _ = _weighted(steps, decay)
    slope = weights * centred
    coefficients: np.ndarray[Any, Any] = slope * (target - steps[-1]) / (slope @ centred)
    coefficients[-1] += 1.0
    return coefficients


def _weighted(
    steps: np.ndarray[Any, Any], decay: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Return the weights, the centred steps and their mean."""
    weights = decay ** np.arange(steps.size - 1, -1, -1.0)
    weights /= weights.sum()
    # Relative to the last step, where the weights are: large steps keep their digits.
    behind = steps - steps[-1]
    mean = float(weights @ behind)
    return weights, behind - mean, float(steps[-1]) + mean
