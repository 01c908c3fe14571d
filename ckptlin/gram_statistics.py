"""How a run moves, from its Gram matrices alone: how far, how straight, in how many directions.

Legend: G the inner products of w_t − w_1, T steps s_t; u_t = w_{t+1} − w_t the updates, H their inner products
(second differences of G); C = I − 11ᵀ/T.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.block_gram import increments
from ckptlin.errors import InputError
from ckptlin.gram_matrices import GramMatrices
from ckptlin.naming import layer_index, module_kind

__all__ = ["LEVELS", "Movement", "movement", "movements"]

# Ways to put tensors together, from one row to many.
LEVELS = ("model", "layer", "kind", "tensor")


@dataclass(frozen=True, slots=True)
class Movement:
    """How a group of tensors moves, taken as one vector.

    What would divide by zero is None: of tensors that never moved, everything but the norm.

    Attributes
    ----------
    name : str
    num_tensors, num_params : int
    update_norm : float
        ‖w_T − w_1‖.
    mean_cosine : float or None
        Mean of cos(u_t, u_{t+1}) over the neighbouring updates that are both not zero.  Near 1: a straight
        path; 0: each update is at right angles to the one before, as in a random walk; below: back and forth.
    straightness : float or None
        Displacement over path length, ‖w_T − w_1‖ / Σ‖u_t‖: 1 for a straight path, 1/√(T−1) for a random walk.
    rank1_share : float or None
        λ_1 / Σλ of G: the share of the first component in Σ‖w_t − w_1‖² (RELEX, arXiv 2605.21468).
    r2 : float or None
        Share of Σ‖w_t − w̄‖² that a line in the step explains for each parameter, xᵀGx / (xᵀx · tr CGC) with
        x_t = s_t − s̄: R² weighted by how far each parameter moves.
    spectrum : tuple of float
        Singular values of the matrix of w_t − w_1, descending, T of them: √λ.
    """

    name: str
    num_tensors: int
    num_params: int
    update_norm: float
    mean_cosine: float | None
    straightness: float | None
    rank1_share: float | None
    r2: float | None
    spectrum: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"spectrum": list(self.spectrum)}

    def to_row(self) -> dict[str, Any]:
        """Return the figures as one flat row, without the spectrum."""
        row = self.to_dict()
        del row["spectrum"]
        return row


def movement(
    gram: np.ndarray[Any, Any],
    steps: Sequence[int],
    *,
    name: str = "",
    num_tensors: int = 1,
    num_params: int = 0,
) -> Movement:
    """Take the figures out of one Gram matrix.

    Parameters
    ----------
    gram : (T, T) float64
        Of w_t − w_1; of several tensors the sum of theirs.
    steps : sequence of int
        T of them, at least two.
    name : str, optional
    num_tensors, num_params : int, optional
        Passed on.

    Raises
    ------
    InputError
        If there are fewer than two steps.

    Examples
    --------
    A straight line in the plane, and two updates at right angles:

    >>> import numpy as np
    >>> line = np.outer([0, 1, 2], [0.6, 0.8])
    >>> movement(line @ line.T, [0, 10, 20]).mean_cosine
    1.0
    >>> corner = np.array([[0, 0], [1, 0], [1, 1]])
    >>> round(movement(corner @ corner.T, [0, 10, 20]).straightness, 4)
    0.7071
    """
    if len(steps) < 2:
        raise InputError("movement needs at least 2 steps")
    moves = increments(gram)
    lengths = np.sqrt(np.maximum(np.diag(moves), 0.0))
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    # What rounding leaves of values that are zero.
    eigenvalues[eigenvalues < len(steps) * np.finfo(np.float64).eps * eigenvalues[0]] = 0.0
    displacement = float(np.sqrt(max(gram[-1, -1], 0.0)))
    return Movement(
        name=name,
        num_tensors=num_tensors,
        num_params=num_params,
        update_norm=displacement,
        mean_cosine=_mean_cosine(moves, lengths),
        straightness=_ratio(displacement, float(lengths.sum())),
        rank1_share=_ratio(float(eigenvalues[0]), float(eigenvalues.sum())),
        r2=_explained(gram, steps),
        spectrum=tuple(np.sqrt(eigenvalues).tolist()),
    )


def movements(grams: GramMatrices, level: str = "kind") -> list[Movement]:
    """Return how the tensors of a run move, put together by ``level``.

    Parameters
    ----------
    grams : GramMatrices
    level : str
        ``model``, ``layer`` (ascending; tensors outside the layers are left out), ``kind`` or ``tensor``, see
        `ckptlin.naming`.

    Raises
    ------
    InputError
        If there is no such level.
    """
    keys: dict[str, Callable[[str], Any]] = {
        "model": lambda name: "model",
        "layer": layer_index,
        "kind": module_kind,
        "tensor": lambda name: name,
    }
    if level not in keys:
        raise InputError(f"there is no level {level!r}; give one of {', '.join(LEVELS)}")
    groups: dict[Any, list[str]] = {}
    for name in grams.matrices:
        groups.setdefault(keys[level](name), []).append(name)
    if level == "layer":
        groups = {f"layer {k}": groups[k] for k in sorted(k for k in groups if k is not None)}
    return [
        movement(
            np.sum([grams.matrices[name] for name in members], axis=0),
            grams.steps,
            name=str(group),
            num_tensors=len(members),
            num_params=sum(grams.num_params[name] for name in members),
        )
        for group, members in groups.items()
    ]


def _mean_cosine(moves: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> float | None:
    products = lengths[1:] * lengths[:-1]
    moved = products > 0
    if not moved.any():
        return None
    return float(np.clip(np.diag(moves, 1)[moved] / products[moved], -1.0, 1.0).mean())


def _explained(gram: np.ndarray[Any, Any], steps: Sequence[int]) -> float | None:
    s = np.asarray(steps)
    x = (s - s[0]).astype(np.float64)  # integers: exact however large the steps are
    x -= x.mean()
    variation = float(np.trace(gram) - gram.sum() / len(steps))
    share = _ratio(float(x @ gram @ x) / float(x @ x), variation)
    return None if share is None else min(max(share, 0.0), 1.0)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
