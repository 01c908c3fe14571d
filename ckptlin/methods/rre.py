"""Reduced-rank extrapolation: the limit that the trajectory converges to."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_gram, check_steps
from ckptlin.methods.persistence import hold_unmoved

__all__ = ["rre"]


def rre(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    ridge: float = 1e-8,
) -> np.ndarray[Any, Any]:
    """Predict the limit of the trajectory, whatever the target.

    ŵ = Σ_{t<T} γ_t·w_t, where Σγ_t = 1 and ‖Σγ_t(w_{t+1} − w_t)‖ is smallest: the combination of checkpoints
    that moves least (Kaniel and Stein 1974, Eddy 1979, Mešina 1977; Sidi, arXiv 1503.02552).  Exact for w_t =
    w + Σ_i λ_i^t·v_i with at most T − 2 terms, λ_i ≠ 1.  With U = DGDᵀ the Gram matrix of the differences, γ
    ∝ (U/tr U + ridge·I)⁻¹1; the ridge (arXiv 1606.04133) keeps γ bounded where differences nearly depend on
    each other.

    A trajectory that is linear in the step has no limit; all γ are then alike, and the prediction is its mean.
    A tensor that never moved keeps the last checkpoint.  Steps count as evenly spaced.

    Examples
    --------
    >>> halving = 1.0 - 0.5 ** np.arange(3)  # 0, 1/2, 3/4 → 1
    >>> rre(np.array([0.0, 50.0, 100.0]), 150.0, np.outer(halving, halving), ridge=1e-14).round(6)
    array([-1.,  2.,  0.])
    """
    check_steps("rre", steps, 3)
    gram = check_gram("rre", steps, gram)
    differences = np.diff(np.eye(steps.size), axis=0)
    values, vectors = np.linalg.eigh(differences @ gram @ differences.T)
    # Rounding in G can leave an eigenvalue below zero, which would make Σγ vanish.
    values = np.maximum(values, 0.0)
    total = values.sum(axis=-1, keepdims=True)
    damping = values / np.where(total > 0.0, total, 1.0) + ridge
    along = vectors.sum(axis=-2)
    gamma = np.einsum("...tr,...r->...t", vectors, along / damping)
    gamma /= gamma.sum(axis=-1, keepdims=True)
    coefficients = np.concatenate([gamma, np.zeros((*gamma.shape[:-1], 1))], axis=-1)
    return hold_unmoved(coefficients, gram)
