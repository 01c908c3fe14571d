"""RELEX: a line along the principal directions of the trajectory."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_gram, check_steps
from ckptlin.methods.ols import ols
from ckptlin.methods.persistence import hold_unmoved

__all__ = ["relex"]


def relex(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    rank: int = 1,
) -> np.ndarray[Any, Any]:
    """Extend the least-squares line of the first principal components of each tensor's trajectory.

    M, the (T, d) matrix of w_t − w_1, is cut to its first r singular components, M ≈ U_rΣ_rV_rᵀ; the
    coordinates U_rΣ_r are fitted linearly in the step, and ŵ(s) = w_1 + V_r·ĉ(s) (arXiv 2605.21468, r =
    1).  With h the coefficients of `ols`, ĉ(s) = Σ_rU_rᵀh and V_r = MᵀU_rΣ_r⁻¹, so that ŵ(s) = w_1 +
    Mᵀ(U_rU_rᵀh): the line of `ols`, projected.  U_r are the first eigenvectors of G = MMᵀ, and nothing is
    divided by small singular values.

    A tensor of lower rank than r has no further components to cut off: r = T − 1 is `ols`.  A tensor that never
    moved keeps the last checkpoint.

    Examples
    --------
    >>> line = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 4.0]])
    >>> relex(np.array([0.0, 50.0, 100.0]), 150.0, line).round(12)
    array([-0.8,  0.6,  1.2])
    """
    check_steps("relex", steps, rank + 1)
    gram = check_gram("relex", steps, gram)
    values, vectors = np.linalg.eigh(gram)
    first = vectors[..., -rank:]
    # Components in the null space move nothing; which of them eigh returns is arbitrary.
    is_there = values[..., -rank:] > steps.size * np.finfo(np.float64).eps * values[..., -1:]
    line = ols(steps, target)
    share = np.where(is_there, np.swapaxes(first, -1, -2) @ line, 0.0)
    coefficients = np.einsum("...tr,...r->...t", first, share)
    coefficients[..., 0] = 0.0
    coefficients[..., 0] = 1.0 - coefficients.sum(axis=-1)
    return hold_unmoved(coefficients, gram)
