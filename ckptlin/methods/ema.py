"""Exponential moving averages of the checkpoints, plain and bias-corrected."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps

__all__ = ["bema", "ema"]


def ema(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    decay: float = 0.7,
) -> np.ndarray[Any, Any]:
    """Average all checkpoints with geometric weights, whatever the target.

    e_1 = w_1, e_t = λ·e_{t−1} + (1 − λ)·w_t, hence a_1 = λ^(T−1), a_t = (1 − λ)λ^(T−t) (arXiv 2411.18704 on
    when it helps).  An update is a checkpoint, not a training step.

    Examples
    --------
    >>> ema(np.array([0.0, 50.0, 100.0]), 150.0, decay=0.5)
    array([0.25, 0.25, 0.5 ])
    """
    check_steps("ema", steps, 1)
    return _average(np.full(steps.size, 1.0 - decay))


def bema(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    ema_power: float = 0.5,
    bias_power: float = 0.2,
    lag: float = 10.0,
    multiplier: float = 1.0,
) -> np.ndarray[Any, Any]:
    """Average with weights that fall by a power, and correct for the average's lag, whatever the target.

    ŵ = e_T + α_T(w_T − w_1), e_t = (1 − β_t)e_{t−1} + β_t·w_t from e_1 = w_1, with β_t = (ρ + γ(t − 1))^(−κ)
    and α_t = (ρ + γ(t − 1))^(−η): BEMA (arXiv 2508.00180, algorithm 1), ρ the lag, γ the multiplier, κ the
    ema_power and η the bias_power.  The paper counts training steps between its updates; here t counts
    checkpoints, since a few checkpoints at a few thousand steps would leave the average at the first.

    Examples
    --------
    >>> bema(np.array([0.0, 50.0, 100.0]), 150.0).round(4)
    array([-0.1115,  0.2145,  0.897 ])
    """
    check_steps("bema", steps, 1)
    clock = lag + multiplier * np.arange(steps.size)
    coefficients = _average(clock**-ema_power)
    correction = float(clock[-1] ** -bias_power)
    coefficients[-1] += correction
    coefficients[0] -= correction
    return coefficients


def _average(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the weights of the last e_t = (1 − shares_t)e_{t−1} + shares_t·w_t; e_1 = w_1."""
    weights = np.zeros(shares.size)
    weights[0] = 1.0
    for row in range(1, shares.size):
        weights *= 1.0 - shares[row]
        weights[row] += shares[row]
    return weights
