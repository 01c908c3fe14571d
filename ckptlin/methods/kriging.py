"""Kriging: the best linear prediction under a covariance of the increments that the tensor itself chooses."""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from ckptlin.methods.base import check_gram, check_steps
from ckptlin.methods.persistence import hold_unmoved

__all__ = ["kriging"]

# The grid: shares of the drift; times in which the short and the long velocity are forgotten, in intervals of
# checkpoints (0: at once) and in spans of the window; shares of the long one.
# Twice as fine a grid predicts no better (docs/methods.md).
_DRIFT = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_SHORT = (0.0, 0.7)
_LONG = (0.2, 0.5, 1.5)
_LONG_SHARE = (0.3, 0.7)

# 98 inverses of 63 x 63 are 3 MB; more checkpoints would cost more and say little more.
_MAX_STEPS = 64


def kriging(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    evidence: float = 30.0,
) -> np.ndarray[Any, Any]:
    """Predict by the covariance of increments under which the tensor's own past is likeliest.

    Every parameter is taken for a sum of a constant drift, a velocity that wanders, and noise: a process with
    stationary increments, whose variogram γ(h) = E(w_{s+h} − w_s)² is, in spans of the window,

        γ(h) = α·h² + (1 − α)·((1 − β)·γ_τ(h) + β·γ_τ'(h)),   γ_τ(h) ∝ h/τ − 1 + e^(−h/τ),   γ(1) = γ_τ(1) = 1.

    γ_τ belongs to a velocity that is forgotten in the time τ (an Ornstein-Uhlenbeck process; τ = 0 is a random
    walk): τ, up to one interval between checkpoints, is what momentum and noise of the gradients leave, τ' a
    longer one, up to 1.5 spans.  With δ the increments between checkpoints, K their covariance under γ and k
    that with the move from the last checkpoint to the target, the best linear prediction of the move is
    kᵀK⁻¹δ (kriging: Matheron, *Economic Geology* 58, 1963; the same as Gaussian-process regression).

    The parameters of a tensor are so many samples of one process, and their likelihood depends on the Gram
    matrix alone: with S = DGDᵀ that of the n increments and the scale at its best, log p = −½·log|K| −
    ½·n·log tr(K⁻¹S) for each independent one.  The prediction is the mean over a grid of (α, β, τ, τ'), each
    weighted by p to the power ``evidence``: how many of its parameters count as independent.  Few do, because
    updates have low rank.

    What it learns needs no past predictions, so two checkpoints are enough for a prediction, then that of the
    grid's plain mean.  The coefficients sum to 1; a target among the observed steps gives that checkpoint; a
    tensor that never moved keeps its last value.  Of more than 64 checkpoints, 64 at even distances enter.

    Parameters
    ----------
    steps, target, gram, pooled
        As `ckptlin.methods.Method` has them; ``pooled`` is ignored.
    evidence : float
        Power of the likelihood; 0 for the grid's plain mean.

    Examples
    --------
    >>> steps, moved = np.arange(5.0), np.array([0.0, 1.0, 2.1, 2.9, 4.0])
    >>> float(kriging(steps, 8.0, np.outer(moved, moved)) @ moved) > 7
    True
    """
    check_steps("kriging", steps)
    given = check_gram("kriging", steps, gram)
    if steps.size > _MAX_STEPS:
        rows = np.linspace(0, steps.size - 1, _MAX_STEPS).round().astype(int)
        few = kriging(steps[rows], target, given[..., rows[:, None], rows], evidence=evidence)
        coefficients = np.zeros((*few.shape[:-1], steps.size))
        coefficients[..., rows] = few
        return coefficients
    increments = np.diff(np.diff(given, axis=-1), axis=-2)
    num = steps.size - 1
    weights = _weights(tuple(steps.tolist()), increments.reshape(-1, num, num), evidence)
    moves = weights @ _predictors(tuple(steps.tolist()), float(target))
    # Σ_i b_i·(w_{i+1} − w_i), written in the checkpoints.
    coefficients = -np.diff(moves, axis=-1, prepend=0.0, append=0.0)
    coefficients[:, -1] += 1.0
    return hold_unmoved(coefficients.reshape(*given.shape[:-2], steps.size), given)


def _weights(
    steps: tuple[float, ...], increments: np.ndarray[Any, Any], evidence: float
) -> np.ndarray[Any, Any]:
    """Return how much each candidate counts for each tensor, ``(num_tensors, num_candidates) float64``."""
    inverse, log_determinant = _inverses(steps)
    num = len(steps) - 1
    misfit = increments.reshape(len(increments), -1) @ inverse.reshape(len(inverse), -1).T
    # Rounding can take the misfit of increments that cancel to zero or just below.
    floor = np.finfo(np.float64).tiny
    log_likelihood = -0.5 * (log_determinant + num * np.log(np.maximum(misfit, floor)))
    weights = np.exp(evidence * (log_likelihood - log_likelihood.max(axis=1, keepdims=True)))
    normalised: np.ndarray[Any, Any] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


@lru_cache(maxsize=2)
def _inverses(steps: tuple[float, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return K⁻¹ of every candidate, ``(num_candidates, n, n) float64``, and log|K|."""
    places = _places(steps)
    gammas = _variograms(np.abs(places[:, None] - places), _interval(places))
    covariance = _mixed(-0.5 * np.diff(np.diff(gammas, axis=1), axis=2))
    # Intervals of very different length would spoil the inverse.
    deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    both = deviation[:, :, None] * deviation[:, None, :]
    correlation = covariance / both
    log_determinant = np.linalg.slogdet(correlation)[1] + 2 * np.log(deviation).sum(axis=1)
    return np.linalg.inv(correlation) / both, log_determinant


def _predictors(steps: tuple[float, ...], target: float) -> np.ndarray[Any, Any]:
    """Return K⁻¹k of every candidate, ``(num_candidates, n) float64``."""
    places = _places(steps)
    ahead = (target - steps[0]) / (steps[-1] - steps[0])
    interval = _interval(places)
    to_target, to_last = (_variograms(np.abs(places - end), interval) for end in (ahead, places[-1]))
    covariance = _mixed(-0.5 * np.diff(to_target - to_last, axis=1))
    predictors: np.ndarray[Any, Any] = (_inverses(steps)[0] @ covariance[..., None])[..., 0]
    return predictors


def _places(steps: tuple[float, ...]) -> np.ndarray[Any, Any]:
    observed = np.array(steps)
    places: np.ndarray[Any, Any] = (observed - observed[0]) / (observed[-1] - observed[0])
    return places


def _interval(places: np.ndarray[Any, Any]) -> float:
    return float(np.median(np.diff(places)))


def _variograms(distances: np.ndarray[Any, Any], interval: float) -> np.ndarray[Any, Any]:
    """Return γ of the drift, of each short and of each long velocity, along a new first axis."""
    times = [*(tau * interval for tau in _SHORT), *_LONG]
    return np.stack([distances**2, *(_forgetting(distances, tau) for tau in times)])


def _mixed(parts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mix what is linear in γ as each candidate of the grid does, ``(num_candidates, ...) float64``."""
    shares = _shares()
    mixed: np.ndarray[Any, Any] = (shares @ parts.reshape(len(parts), -1)).reshape(-1, *parts.shape[1:])
    return mixed


def _shares() -> np.ndarray[Any, Any]:
    """Return the share of each part of `_variograms` in each candidate, ``(num_candidates, num_parts)``."""
    drift, *velocities = np.eye(1 + len(_SHORT) + len(_LONG))
    short, long = velocities[: len(_SHORT)], velocities[len(_SHORT) :]
    rest = [*short, *((1 - b) * s + b * v for s, v, b in product(short, long, _LONG_SHARE))]
    return np.stack([alpha * drift + (1 - alpha) * other for alpha, other in product(_DRIFT, rest)])


def _forgetting(distances: np.ndarray[Any, Any], tau: float) -> np.ndarray[Any, Any]:
    """γ_τ: how far a velocity that is forgotten in the time τ leads, γ_τ(1) = 1."""
    if tau == 0:
        return distances
    scaled, one = distances / tau, 1 / tau
    gamma: np.ndarray[Any, Any] = (scaled + np.expm1(-scaled)) / (one + np.expm1(-one))
    return gamma
