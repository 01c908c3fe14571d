"""Dynamic mode decomposition: the last update goes on as updates did so far."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_gram, check_steps
from ckptlin.methods.persistence import hold_unmoved

__all__ = ["dmd"]

# Squared singular values of the updates below this share of the largest are rounding of G.
_NOISE = 1e-12


def dmd(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    rank: int = 1,
) -> np.ndarray[Any, Any]:
    """Go on from the last checkpoint with updates that follow a linear recurrence.

    The updates u_t = w_{t+1} − w_t are taken to obey u_{t+1} = A·u_t.  With X = (u_1, …, u_{T−2}) and Y =
    (u_2, …, u_{T−1}), and X = VΣWᵀ cut to r components, Ã = VᵀAV = VᵀYWΣ⁻¹ and b = Vᵀu_{T−1}; the updates
    after the last are YWΣ⁻¹Ãʲb, j = 0, 1, …: exact DMD (Schmid 2010; Tu et al., arXiv 1312.0041) of the
    updates instead of the weights, so that a constant one is a mode of eigenvalue 1 and a line is continued
    exactly.  Ã = Σ⁻¹Wᵀ(XᵀY)WΣ⁻¹ and b = Σ⁻¹Wᵀ(Xᵀu_{T−1}) need Gram matrices alone.

    Where Ã's spectral radius exceeds 1 it is divided by it: updates do not grow without end.  Checkpoints at
    uneven steps are first interpolated linearly to as many even ones; part of a period takes its share of the
    next update.  Up to the last step the prediction is the straight line between the checkpoints beside the
    target, before the first the line through the first two.  A tensor that never moved keeps the last
    checkpoint.

    Examples
    --------
    >>> halving = 1.0 - 0.5 ** np.arange(3)  # 0, 1/2, 3/4 → 7/8
    >>> dmd(np.array([0.0, 50.0, 100.0]), 150.0, np.outer(halving, halving)).round(12)
    array([ 0. , -0.5,  1.5])
    """
    check_steps("dmd", steps, rank + 2)
    gram = check_gram("dmd", steps, gram)
    if target <= steps[-1]:
        beside: np.ndarray[Any, Any] = _between(steps, np.array([target]))[0]
        return beside
    period = (steps[-1] - steps[0]) / (steps.size - 1)
    updates = np.diff(_between(steps, np.linspace(steps[0], steps[-1], steps.size)), axis=0)
    products = updates @ gram @ updates.T
    values, vectors = np.linalg.eigh(products[..., :-1, :-1])
    values, vectors = values[..., -rank:], vectors[..., -rank:]
    is_there = values > np.maximum(_NOISE * values[..., -1:], 0.0)
    scaled = vectors * np.where(is_there, 1.0 / np.sqrt(np.where(is_there, values, 1.0)), 0.0)[..., None, :]
    across = np.swapaxes(scaled, -1, -2)
    operator = across @ products[..., :-1, 1:] @ scaled
    start = across @ products[..., :-1, -1:]
    radius = np.abs(np.linalg.eigvals(operator)).max(axis=-1)[..., None, None]
    ahead = _sum_of_powers(operator / np.maximum(radius, 1.0), start, (target - steps[-1]) / period)
    coefficients = (scaled @ ahead)[..., 0] @ updates[1:]
    coefficients[..., -1] += 1.0
    return hold_unmoved(coefficients, gram)


def _sum_of_powers(
    operator: np.ndarray[Any, Any], start: np.ndarray[Any, Any], periods: float
) -> np.ndarray[Any, Any]:
    """Return Σ_{j<n} Aʲb for n whole periods, and the share of the next term that is left."""
    rank = operator.shape[-1]
    whole = int(periods)
    # (Aⁿb, Σ_{j<n} Aʲb) by repeated squaring: a far target takes no longer than a near one.
    step = np.zeros((*operator.shape[:-2], 2 * rank, 2 * rank))
    step[..., :rank, :rank] = operator
    step[..., rank:, :rank] = step[..., rank:, rank:] = np.eye(rank)
    both = np.linalg.matrix_power(step, whole)[..., :rank] @ start
    total: np.ndarray[Any, Any] = both[..., rank:, :] + (periods - whole) * both[..., :rank, :]
    return total


def _between(steps: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the coefficients of linear interpolation at each target, ``(len(targets), T)``."""
    left = np.clip(np.searchsorted(steps, targets, side="right") - 1, 0, steps.size - 2)
    share = (targets - steps[left]) / (steps[left + 1] - steps[left])
    rows = np.arange(targets.size)
    coefficients = np.zeros((targets.size, steps.size))
    coefficients[rows, left] = 1.0 - share
    coefficients[rows, left + 1] = share
    return coefficients
