"""How well each method would have predicted each later checkpoint, from Gram matrices alone.

Owns the rolling origin: which checkpoints a method sees, which it has to predict, and the squared error of
either.  What to make of the errors is left to `ckptlin.verdict` and `ckptlin.backtest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.gram_matrices import GramMatrices
from ckptlin.methods import MethodSpec
from ckptlin.naming import matches

__all__ = ["MIN_ORIGIN", "Scores", "leading", "score"]

# Fewest checkpoints that a prediction is judged from: with two, every line is the same.
MIN_ORIGIN = 3


@dataclass(frozen=True, eq=False)
class Scores:
    """Squared errors of predictions, one for each method, tensor kind, and pair of origin and later checkpoint.

    Attributes
    ----------
    steps : tuple of int
    kinds : tuple of str
        `ckptlin.naming.module_kind` of the tensors.
    num_params : numpy.ndarray
        ``(num_kinds,) int64``.
    origins, held_out : numpy.ndarray
        ``(num_pairs,) int64``: a method saw the first ``origins`` checkpoints and predicted row ``held_out``.
    errors : dict of str to numpy.ndarray
        By method, ``(num_kinds, num_pairs) float64``: ‖ŵ − w_h‖²; NaN where it needs more checkpoints.
    moves : numpy.ndarray
        ``(num_kinds, num_pairs) float64``: ‖w_h − w_last‖², the error of keeping the last checkpoint seen.
    rounding : numpy.ndarray
        ``(num_kinds,) float64``: the squared error that rounding to the checkpoints' dtype makes.
    """

    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    num_params: np.ndarray[Any, Any]
    origins: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]
    errors: Mapping[str, np.ndarray[Any, Any]]
    moves: np.ndarray[Any, Any]
    rounding: np.ndarray[Any, Any]

    @property
    def reach(self) -> np.ndarray[Any, Any]:
        """Target of each pair, in spans observed: (s_h − s_1)/(s_last − s_1), ``(num_pairs,) float64``."""
        steps = np.array(self.steps, np.float64)
        reach: np.ndarray[Any, Any] = (steps[self.held_out] - steps[0]) / (steps[self.origins - 1] - steps[0])
        return reach

    def skill(self, method: str, kind: str | None = None) -> np.ndarray[Any, Any]:
        """Return 1 − ‖ŵ − w_h‖²/‖w_h − w_last‖² of each pair, ``(num_pairs,) float64``.

        Of one kind of tensors, or of the whole model.  NaN where the method needs more checkpoints, or nothing
        moved from the origin on.
        """
        return self._relative(self.errors[method], kind)

    def ceiling(self, kind: str | None = None) -> np.ndarray[Any, Any]:
        """Return the skill of a prediction that is right up to the rounding of the checkpoints.

        1 − Σulp²/12 / ‖w_h − w_last‖², ``(num_pairs,) float64``, at least 0; NaN where nothing moved.
        """
        bound = np.broadcast_to(self.rounding[:, None], self.moves.shape)
        ceiling: np.ndarray[Any, Any] = np.maximum(self._relative(bound, kind), 0.0)
        return ceiling

    def up_to(self, num_steps: int) -> np.ndarray[Any, Any]:
        """Tell which pairs the first ``num_steps`` checkpoints alone make, ``(num_pairs,) bool``."""
        within: np.ndarray[Any, Any] = self.held_out < num_steps
        return within

    def _relative(self, errors: np.ndarray[Any, Any], kind: str | None) -> np.ndarray[Any, Any]:
        rows = slice(None) if kind is None else [self.kinds.index(kind)]
        error, move = errors[rows].sum(axis=0), self.moves[rows].sum(axis=0)
        relative = 1.0 - error / np.where(move > 0.0, move, 1.0)
        return np.where(move > 0.0, relative, np.nan)


def score(grams: GramMatrices, methods: Sequence[MethodSpec]) -> Scores:
    """Predict every later checkpoint from every prefix of at least 3, by every method, and judge it.

    The squared error is cᵀGc with c = a − e_h, float64; a method is given the leading block of G alone, so
    that nothing later than its origin can reach it.  Tensors that a method keeps unless told otherwise have
    the error of the last checkpoint seen, as in the checkpoint that it would write.

    Parameters
    ----------
    grams : GramMatrices
        Of at least 4 steps.
    methods : sequence of MethodSpec
        Errors are kept under their `MethodSpec.short`.

    Raises
    ------
    InputError
        If there are fewer than 4 steps, no tensors, or a Gram matrix is not finite.
    """
    num_steps = len(grams.steps)
    if num_steps <= MIN_ORIGIN:
        found = "only one was" if num_steps == 1 else f"only {num_steps} were"
        raise InputError(
            f"a backtest needs at least {MIN_ORIGIN + 1} checkpoints, {MIN_ORIGIN} to predict from and one to "
            f"predict, and {found} selected"
        )
    if not grams.matrices:
        raise InputError("a backtest needs the Gram matrix of at least one tensor, and there is none")
    stack, pooled = grams.stack(), grams.total()
    if not np.isfinite(pooled).all():
        name = next(name for name, matrix in grams.matrices.items() if not np.isfinite(matrix).all())
        raise InputError(f"the Gram matrix of tensor `{name}` has NaN or infinity in it")
    steps = np.array(grams.steps, np.float64)
    kinds = grams.kinds()
    belongs = np.array([[name in names for name in grams.names] for names in kinds.values()], np.float64)
    pairs = [(n, h) for n in range(MIN_ORIGIN, num_steps) for h in range(n, num_steps)]
    origins, held_out = (np.array(column) for column in zip(*pairs, strict=True))
    unit = np.eye(num_steps)
    moves = _squared(unit[held_out] - unit[origins - 1], stack)
    errors = {}
    for method in methods:
        of_tensors = np.full(moves.shape, np.nan)
        for pair, (n, h) in enumerate(pairs):
            if n >= method.min_steps:
                of_tensors[:, pair] = _error(method, steps, stack, pooled, n, h)
        kept = [any(matches(name, pattern) for pattern in method.keep) for name in grams.names]
        of_tensors[kept] = np.where(np.isnan(of_tensors[kept]), np.nan, moves[kept])
        errors[method.short] = belongs @ of_tensors
    return Scores(
        steps=grams.steps,
        kinds=tuple(kinds),
        num_params=np.array([sum(grams.num_params[name] for name in names) for names in kinds.values()]),
        origins=origins,
        held_out=held_out,
        errors=errors,
        moves=belongs @ moves,
        rounding=np.array([sum(grams.rounding[name] for name in names) for names in kinds.values()]),
    )


def leading(
    method: MethodSpec,
    steps: np.ndarray[Any, Any],
    target: float,
    stack: np.ndarray[Any, Any],
    pooled: np.ndarray[Any, Any],
    num_steps: int,
) -> np.ndarray[Any, Any]:
    """Return the coefficients that a method gives the first ``num_steps`` checkpoints, and sees no others."""
    part = slice(num_steps)
    return method.coefficients(steps[part], target, stack[:, part, part], pooled[part, part])


def _error(
    method: MethodSpec,
    steps: np.ndarray[Any, Any],
    stack: np.ndarray[Any, Any],
    pooled: np.ndarray[Any, Any],
    num_steps: int,
    row: int,
) -> np.ndarray[Any, Any]:
    """Return ‖ŵ − w_row‖² of every tensor, ``(num_tensors,) float64``."""
    found = leading(method, steps, steps[row], stack, pooled, num_steps)
    residual = np.zeros((*found.shape[:-1], steps.size))
    residual[..., :num_steps] = found
    residual[..., row] -= 1.0
    return _squared(residual, stack) if residual.ndim == 1 else _squared(residual[:, None], stack)[:, 0]


def _squared(combinations: np.ndarray[Any, Any], stack: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return cᵀGc of every tensor, ``(num_tensors, ...)``, for ``(..., T)`` or ``(num_tensors, ..., T)``."""
    square = ((combinations @ stack) * combinations).sum(axis=-1)
    # Rounding of G may leave less than nothing of an error that is nearly none.
    at_least_none: np.ndarray[Any, Any] = np.maximum(square, 0.0)
    return at_least_none
