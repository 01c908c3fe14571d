"""Polynomials in the step."""

from typing import Any

import numpy as np

from ckptlin.methods.base import check_steps

__all__ = ["polynomial"]


def polynomial(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    degree: int = 2,
) -> np.ndarray[Any, Any]:
    """Extend the least-squares polynomial through all checkpoints.

    a = Φ(ΦᵀΦ)⁻¹φ(s), Φ the values of the polynomials up to the degree at the steps, φ(s) those at the target:
    the fitted value, written in the weights.  Computed with Legendre polynomials on the observed span and a
    QR decomposition, Φ = QR, a = QR⁻ᵀφ(s), as monomials lose their digits from about the fourth degree
    on.  Degree 1 is `ols`; degree T − 1 goes through every checkpoint.  Past the last step it grows with that
    power.

    Examples
    --------
    >>> polynomial(np.array([0.0, 50.0, 100.0]), 150.0).round(12)
    array([ 1., -3.,  3.])
    """
    check_steps("polynomial", steps, degree + 1)
    span = steps[-1] - steps[0]
    at_steps = np.polynomial.legendre.legvander(2.0 * (steps - steps[0]) / span - 1.0, degree)
    at_target = np.polynomial.legendre.legvander(np.array([2.0 * (target - steps[0]) / span - 1.0]), degree)[0]
    q, r = np.linalg.qr(at_steps)
    coefficients: np.ndarray[Any, Any] = q @ np.linalg.solve(r.T, at_target)
    return coefficients
