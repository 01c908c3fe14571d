"""Steps and trajectories that methods are tried on, in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ckptlin.methods import METHODS, parse_method

__all__ = ["NAMES", "SPECS", "coefficients", "gram_of", "runs", "steps_of_a_run", "targets"]

NAMES = sorted(METHODS)
# Every method, and those with parameters that make another rule of it.
SPECS = [
    *NAMES,
    "wls:decay=0.3",
    "polynomial:degree=1",
    "polynomial:degree=3",
    "relex:rank=2",
    "dmd:rank=2",
    "lawa:k=1",
    "ema:decay=0",
    "rre:ridge=0.01",
    "damped:base=ols",
    "damped:base=relex",
    "damped:ridge=0,width=2,base=damped:base=two-point",
]


def steps_of_a_run(min_size: int = 2, max_size: int = 30) -> st.SearchStrategy[list[int]]:
    """Ascending steps at any distances."""
    return st.lists(st.integers(0, 10**6), min_size=min_size, max_size=max_size, unique=True).map(sorted)


targets = st.integers(-(10**6), 10**7)


@st.composite
def runs(
    draw: st.DrawFn, min_size: int = 2, max_size: int = 10, num_params: int = 12
) -> tuple[np.ndarray, np.ndarray, float]:
    """Steps at distances of 1 to 20, a trajectory ``(T, num_params)``, and a target after the last.

    The trajectory is a drift with noise, a walk, or noise alone, of more directions than checkpoints.
    """
    gaps = draw(st.lists(st.integers(1, 20), min_size=min_size - 1, max_size=max_size - 1))
    steps = draw(st.integers(0, 1000)) + np.cumsum([0, *gaps]).astype(np.float64)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    noise = rng.normal(size=(steps.size, num_params))
    kind = draw(st.sampled_from(["drift", "walk", "noise"]))
    drift = np.outer(steps - steps[0], rng.normal(size=num_params)) / (steps[-1] - steps[0])
    weights = {"drift": drift + 0.1 * noise, "walk": noise.cumsum(axis=0), "noise": noise}[kind]
    return steps, weights, float(steps[-1] + draw(st.integers(1, 300)) / 2)


def gram_of(weights: Any) -> np.ndarray:
    """Return the Gram matrix of a trajectory ``(T, num_params)``, float64."""
    moves = np.asarray(weights, np.float64) - np.asarray(weights, np.float64)[0]
    return moves @ moves.T


def coefficients(
    method: str, steps: Sequence[float], target: float, gram: Any = None, pooled: Any = None
) -> np.ndarray:
    """Return the coefficients of a method that is named as on the command line."""
    return parse_method(method).coefficients(np.array(steps, np.float64), target, gram, pooled)
