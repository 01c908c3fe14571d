"""Gram matrices worked out by NumPy in float64, from weights that a test holds in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckptlin.gram_matrices import GramMatrices

__all__ = ["grams_of", "spacing"]


def spacing(weights: np.ndarray) -> np.ndarray:
    """Distance from each value to the next one of its dtype, float64; 0 for float64 itself."""
    if weights.dtype == np.float64:
        return np.zeros(weights.shape)
    above = np.nextafter(np.abs(weights), np.array(np.inf, weights.dtype))
    return above.astype(np.float64) - np.abs(weights).astype(np.float64)


def grams_of(steps: Sequence[int], weights: Mapping[str, Any], num_samples: int = 300) -> GramMatrices:
    """Return the Gram matrices of trajectories ``(T, ...)`` of any floating dtype."""
    flat = {name: np.asarray(w).reshape(len(steps), -1) for name, w in weights.items()}
    wide = {name: w.astype(np.float64) for name, w in flat.items()}
    moves = {name: w - w[0] for name, w in wide.items()}
    rounding = {
        name: float((spacing(w[-1]) ** 2)[(w != w[0]).any(axis=0)].sum() / 12) for name, w in flat.items()
    }
    return GramMatrices(
        steps=tuple(int(step) for step in steps),
        matrices={name: m @ m.T for name, m in moves.items()},
        num_params={name: w.shape[1] for name, w in flat.items()},
        rounding=rounding,
        samples={
            name: w[:, np.unique(np.linspace(0, w.shape[1] - 1, min(num_samples, w.shape[1])).astype(int))]
            for name, w in flat.items()
        },
    )
