"""The coefficients of an affine prediction: one vector for all tensors, or one for each.

Owns which rows of the source each tensor needs; where the numbers come from is the methods' business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.gram_matrices import GramMatrices
from ckptlin.methods import MethodSpec

__all__ = ["Coefficients", "coefficients_of"]

# Of Σ a_t from 1, relative to Σ |a_t|.
_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Coefficients:
    """ŵ = Σ_t a_t·w_t over the rows of a window, with Σ a_t = 1.

    Attributes
    ----------
    rows : tuple of int
        The window's rows of the source, ascending.
    shared : numpy.ndarray
        ``(len(rows),) float64``: of every tensor that has none of its own.
    by_tensor : dict of str to numpy.ndarray
        ``(len(rows),) float64`` of single tensors; empty where all are equal.
    """

    rows: tuple[int, ...]
    shared: np.ndarray[Any, Any]
    by_tensor: Mapping[str, np.ndarray[Any, Any]]

    @property
    def is_shared(self) -> bool:
        """Whether every tensor has the same."""
        return not self.by_tensor

    def of(self, tensor: str) -> np.ndarray[Any, Any]:
        """Return a tensor's coefficients, ``(len(rows),) float64``."""
        return self.by_tensor.get(tensor, self.shared)

    def rows_of(self, tensor: str) -> tuple[int, ...]:
        """Return the rows that a tensor's prediction needs: those with a coefficient, and the last.

        The last is what a parameter is compared with, or kept at.
        """
        used = np.flatnonzero(self.of(tensor)).tolist()
        return tuple(self.rows[i] for i in sorted({*used, len(self.rows) - 1}))

    def used(self) -> tuple[int, ...]:
        """Return the rows that any tensor has a coefficient for."""
        vectors = [*self.by_tensor.values()] or [self.shared]
        return tuple(self.rows[i] for i in np.flatnonzero(np.any(np.stack(vectors) != 0.0, axis=0)))

    def single_row(self) -> int | None:
        """Return the row that alone makes up every tensor, None if there is no such row."""
        used = self.used()
        return used[0] if len(used) == 1 else None

    def restricted(self, rows: Sequence[int]) -> "Coefficients":
        """Keep some of the rows; those left out must have no coefficient."""
        kept = [self.rows.index(row) for row in rows]
        return Coefficients(
            tuple(rows), self.shared[kept], {name: vector[kept] for name, vector in self.by_tensor.items()}
        )

    def over(self, tensor: str, rows: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return a tensor's coefficients over more rows, ``(len(rows),) float64``: 0 for those it has not."""
        mine = dict(zip(self.rows, self.of(tensor).tolist(), strict=True))
        return np.array([mine.get(row, 0.0) for row in rows])

    def to_plain(self) -> list[float] | dict[str, list[float]]:
        """Return them as plain data: one list if all tensors have the same."""
        if self.is_shared:
            plain: list[float] = self.shared.tolist()
            return plain
        return {name: vector.tolist() for name, vector in self.by_tensor.items()}


def coefficients_of(
    spec: MethodSpec,
    rows: Sequence[int],
    steps: Sequence[int],
    target: int,
    grams: GramMatrices | None = None,
    tied: Mapping[str, str] | None = None,
) -> Coefficients:
    """Work out a method's coefficients over a window.

    Parameters
    ----------
    spec : MethodSpec
    rows : sequence of int
        The window's rows of the source.
    steps : sequence of int
        Their steps.
    target : int
    grams : GramMatrices, optional
        Of just these steps; what a method with ``needs_gram`` needs.  A tensor without elements, which has
        no matrix, counts as one that never moved.
    tied : dict of str to str, optional
        Names that go with another tensor's matrix.

    Raises
    ------
    InputError
        If there are too few checkpoints, or the method (another package's) returns something that is no
        affine combination.
    """
    observed = np.array(steps, np.float64)
    if not spec.needs_gram:
        shared = spec.coefficients(observed, float(target))
        _check(spec, shared, observed.size)
        return Coefficients(tuple(rows), shared, {})
    if grams is None:
        raise InputError(f"method {spec} needs the Gram matrix of each tensor, and none was given")
    pooled = grams.total()
    unmoved = spec.coefficients(observed, float(target), np.zeros_like(pooled), pooled)
    _check(spec, unmoved, observed.size)
    own = np.broadcast_to(
        spec.coefficients(observed, float(target), grams.stack(), pooled), (len(grams.matrices), observed.size)
    )
    for name, vector in zip(grams.matrices, own, strict=True):
        _check(spec, vector, observed.size, f" for tensor `{name}`")
    if len(own) and (own == own[0]).all():
        return Coefficients(tuple(rows), own[0].copy(), {})
    by_tensor = {name: vector.copy() for name, vector in zip(grams.matrices, own, strict=True)}
    aliases = {name: by_tensor[kept] for name, kept in (tied or {}).items() if kept in by_tensor}
    return Coefficients(tuple(rows), unmoved, {**aliases, **by_tensor})


def _check(spec: MethodSpec, vector: np.ndarray[Any, Any], num_rows: int, whose: str = "") -> None:
    if vector.shape != (num_rows,) or not np.isfinite(vector).all():
        raise InputError(f"method {spec} did not return {num_rows} finite coefficients{whose}")
    error = abs(float(vector.sum()) - 1.0)
    if error > _SUM_TOLERANCE * float(np.abs(vector).sum()):
        raise InputError(
            f"method {spec} returned coefficients{whose} that sum to {vector.sum():.6g}; they must sum to 1"
        )
