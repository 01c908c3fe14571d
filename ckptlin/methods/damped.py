"""ckptlin's own method: as much of a predicted move as such predictions were worth before."""

from functools import lru_cache
from typing import Any

import numpy as np

from ckptlin.methods.base import Method, MethodSpec, check_gram, check_steps
from ckptlin.methods.persistence import hold_unmoved
from ckptlin.methods.wls import wls_anchored

__all__ = ["damped"]

# Fewest checkpoints that a prediction of the past is made from.  Two make every base the same line, and yet
# without them a window of three would teach nothing: on runs of GRPO at 3 spans they raise the skill from .35
# to .43 with 25 checkpoints, from .21 to .44 with 13.
_MIN_ORIGIN = 2
# A tensor may be trusted to go further than its prediction, but not without end.
_MAX_FACTOR = 1.5
# Squared moves below this share of the trajectory's largest are rounding of G.
_NOISE = 1e-10


def damped(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any] | None = None,
    pooled: np.ndarray[Any, Any] | None = None,
    *,
    ridge: float = 1.0,
    width: float = 0.5,
    base: Method = wls_anchored,
) -> np.ndarray[Any, Any]:
    """Scale the move that another method predicts by what such predictions were worth in the window's past.

    ŵ(s) = w_T + f·(ŵ_base(s) − w_T), with one f for each tensor.  Every pair of an origin n ≥ 2 and a later
    checkpoint h is a prediction that can be judged: the base, given the first n checkpoints, predicted the move
    p = ŵ_base,n(s_h) − w_n, and m = w_h − w_n came.  f minimises Σω‖m − f·p‖²/‖m‖², the mean loss of skill, so
    f = Σω⟨p, m⟩/‖m‖² / Σω‖p‖²/‖m‖², all of it from G.  Pairs count by how near their reach is to the target's,
    ω = exp(−½(ln(ρ_pair/ρ_target)/width)²), ρ = (s_h − s_1)/(s_n − s_1), the largest scaled to 1.  f is drawn
    towards the whole model's, from ``pooled``, with the weight of ``ridge`` pairs, and kept within 0 and 1.5.

    Without a pair to judge by (fewer than 3 checkpoints) f is 1, and the base predicts alone; so it does up
    to the last step.  A tensor whose past says nothing has the whole model's f; without ``pooled`` it has its
    own alone.  A tensor that never moved keeps the last checkpoint.  A line is continued exactly where the
    base does so: f is then 1.  No source: this method is ckptlin's.

    Examples
    --------
    A trajectory that slows down: the base overshoots, and has done so before.

    >>> steps = np.array([0.0, 50.0, 100.0, 150.0, 200.0])
    >>> slowing = np.sqrt(steps)
    >>> gram = np.outer(slowing, slowing)
    >>> truth = np.sqrt(400.0)
    >>> [round(float(abs(m(steps, 400.0, gram) @ slowing - truth)), 2) for m in (wls_anchored, damped)]
    [6.06, 0.89]
    """
    check_steps("damped", steps, max(2, getattr(base, "min_steps", 2)))
    gram = check_gram("damped", steps, gram)
    predicted = base(steps, target, gram, pooled)
    if target <= steps[-1]:
        return predicted
    factor = _factor(steps, target, gram, pooled, base, ridge, width)
    coefficients = factor[..., None] * predicted
    coefficients[..., -1] += 1.0 - factor
    return hold_unmoved(coefficients, gram)


def _factor(
    steps: np.ndarray[Any, Any],
    target: float,
    gram: np.ndarray[Any, Any],
    pooled: np.ndarray[Any, Any] | None,
    base: Method,
    ridge: float,
    width: float,
) -> np.ndarray[Any, Any]:
    """Return f of each tensor, of G's leading shape."""
    pairs = _pairs(base, steps.size)
    if not pairs:
        return np.ones(gram.shape[:-2])
    reach = np.array([(steps[h] - steps[0]) / (steps[n - 1] - steps[0]) for n, h in pairs])
    distance = (np.log(reach * (steps[-1] - steps[0]) / (target - steps[0])) / width) ** 2
    weights = np.exp(-0.5 * (distance - distance.min()))
    along, square, count = _judged(steps, pairs, weights, gram, pooled, base)
    if pooled is None:
        return _ratio(along, square, np.ones(square.shape))
    whole = _judged(steps, pairs, weights, pooled, pooled, base)
    common = _ratio(whole[0], whole[1], np.ones(()))
    own = _ratio(along, square, np.broadcast_to(common, square.shape))
    evidence = count + ridge
    mixed = (count * own + ridge * common) / np.where(evidence > 0.0, evidence, 1.0)
    return np.where(evidence > 0.0, mixed, common)


def _pairs(base: Method, num_steps: int) -> list[tuple[int, int]]:
    """List the number of checkpoints seen and the row predicted of every prediction of the past."""
    first = max(_MIN_ORIGIN, getattr(base, "min_steps", 2))
    return [(n, h) for n in range(first, num_steps) for h in range(n, num_steps)]


def _predicted(
    steps: np.ndarray[Any, Any],
    gram: np.ndarray[Any, Any] | None,
    pooled: np.ndarray[Any, Any] | None,
    base: Method,
) -> np.ndarray[Any, Any]:
    """Return the coefficients of the move that the base predicted for each pair, ``(..., num_pairs, T)``."""
    moves = []
    for n, h in _pairs(base, steps.size):
        grams = [None if g is None else g[..., :n, :n] for g in (gram, pooled)]
        found = base(steps[:n], steps[h], *grams)
        move = np.zeros((*found.shape[:-1], steps.size))
        move[..., :n] = found
        move[..., n - 1] -= 1.0
        moves.append(move)
    return np.stack(np.broadcast_arrays(*moves), axis=-2)


# A backtest asks for the same ones for every target of an origin, and for every tensor.
@lru_cache(maxsize=64)
def _predicted_from_steps(steps: tuple[float, ...], base: MethodSpec) -> np.ndarray[Any, Any]:
    """Return `_predicted` of a base that looks at the steps alone, ``(num_pairs, T)``, read-only."""
    moves = _predicted(np.array(steps), None, None, base)
    moves.flags.writeable = False
    return moves


def _judged(
    steps: np.ndarray[Any, Any],
    pairs: list[tuple[int, int]],
    weights: np.ndarray[Any, Any],
    gram: np.ndarray[Any, Any],
    pooled: np.ndarray[Any, Any] | None,
    base: Method,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return Σω⟨p, m⟩/‖m‖², Σω‖p‖²/‖m‖² and Σω over the pairs of each tensor in which it moved."""
    if isinstance(base, MethodSpec) and not base.needs_gram:
        predicted = _predicted_from_steps(tuple(steps.tolist()), base)
    else:
        predicted = _predicted(steps, gram, pooled, base)
    last, held_out = [n - 1 for n, _ in pairs], [h for _, h in pairs]
    # ⟨m, w_t − w_1⟩ for every t, from the two rows of G that m = w_h − w_n touches.
    projected = gram[..., held_out, :] - gram[..., last, :]
    each = np.arange(len(pairs))
    size = projected[..., each, held_out] - projected[..., each, last]
    largest = np.diagonal(gram, axis1=-2, axis2=-1).max(axis=-1)[..., None]
    moved = size > _NOISE * largest
    scaled = np.where(moved, weights / np.where(moved, size, 1.0), 0.0)
    along = (scaled * (projected * predicted).sum(axis=-1)).sum(axis=-1)
    square = (scaled * ((predicted @ gram) * predicted).sum(axis=-1)).sum(axis=-1)
    return along, square, np.where(moved, weights, 0.0).sum(axis=-1)


def _ratio(
    along: np.ndarray[Any, Any], square: np.ndarray[Any, Any], otherwise: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the factor that fits best, within its bounds; ``otherwise`` where no move was predicted."""
    is_known = square > 0.0
    return np.where(is_known, np.clip(along / np.where(is_known, square, 1.0), 0.0, _MAX_FACTOR), otherwise)
