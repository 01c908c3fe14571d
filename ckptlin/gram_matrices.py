"""Gram matrices of a run's trajectories: all that a prediction needs to know of the weights, in memory.

Owns the matrices once they are computed: re-basing to a window, sums over tensors, groups.  How they are
computed, and where they are kept, is no business of this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.naming import module_kind

__all__ = ["GramMatrices"]


@dataclass(frozen=True, eq=False)
class GramMatrices:
    """The Gram matrix of every tensor over the same steps, and what rounding does to the tensor.

    G_tu = (w_t − w_1)ᵀ(w_u − w_1): row and column 0 are zero.  The squared distance of any two affine
    combinations of the checkpoints follows from it, ‖Σ_t a_t·w_t − Σ_t b_t·w_t‖² = cᵀGc with c = a − b.

    Attributes
    ----------
    steps : tuple of int
        Strictly ascending, T of them.
    matrices : dict of str to numpy.ndarray
        ``(T, T) float64`` by tensor, in the source's order.
    num_params : dict of str to int
        Parameters of each tensor.
    rounding : dict of str to float
        By tensor, the squared error that rounding its weights to its dtype makes: the sum over its parameters
        that moved of ulp(w)²/12; 0 for float64.
    samples : dict of str to numpy.ndarray
        ``(T, n)`` of the tensor's own dtype: a few hundred trajectories at even distances.  A tensor without
        samples may be missing.

    Raises
    ------
    InputError
        On construction, if the parts do not fit together.
    """

    steps: tuple[int, ...]
    matrices: Mapping[str, np.ndarray[Any, Any]]
    num_params: Mapping[str, int]
    rounding: Mapping[str, float]
    samples: Mapping[str, np.ndarray[Any, Any]]

    def __post_init__(self) -> None:
        num_steps = len(self.steps)
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise InputError(f"the steps of Gram matrices must ascend, and {list(self.steps)} do not")
        for name, matrix in self.matrices.items():
            if matrix.shape != (num_steps, num_steps) or matrix.dtype != np.float64:
                raise InputError(
                    f"the Gram matrix of tensor `{name}` is {matrix.dtype} of shape {matrix.shape}; "
                    f"{num_steps} steps need float64 of shape {(num_steps, num_steps)}"
                )
            if name not in self.num_params or name not in self.rounding:
                raise InputError(f"the Gram matrix of tensor `{name}` came without num_params or rounding")
        for name, sample in self.samples.items():
            if sample.ndim != 2 or sample.shape[0] != num_steps:
                raise InputError(
                    f"the sample of tensor `{name}` has shape {sample.shape}; it needs a row for each of "
                    f"{num_steps} steps"
                )

    def __repr__(self) -> str:
        """Say what it holds in one line: the matrices themselves are long."""
        span = f"{self.steps[0]} to {self.steps[-1]}" if self.steps else "none"
        total = sum(self.num_params[name] for name in self.matrices)
        held = f"{len(self.matrices)} tensors, {total:,} parameters"
        return f"GramMatrices({len(self.steps)} steps, {span}; {held})"

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in order."""
        return tuple(self.matrices)

    def stack(self) -> np.ndarray[Any, Any]:
        """Return all matrices as one array, ``(num_tensors, T, T) float64``, in the order of `names`."""
        num_steps = len(self.steps)
        if not self.matrices:
            return np.zeros((0, num_steps, num_steps))
        return np.stack(list(self.matrices.values()))

    def total(self) -> np.ndarray[Any, Any]:
        """Return the whole model's matrix, the sum over tensors, ``(T, T) float64``."""
        total: np.ndarray[Any, Any] = self.stack().sum(axis=0)
        return total

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """Group the tensors by `ckptlin.naming.module_kind`; kinds in the order of their first tensor."""
        groups: dict[str, list[str]] = {}
        for name in self.matrices:
            groups.setdefault(module_kind(name), []).append(name)
        return {kind: tuple(names) for kind, names in groups.items()}

    def window(self, rows: Sequence[int]) -> "GramMatrices":
        """Restrict to rows, ascending, and re-base to the first of them, b.

        G'_tu = G_tu − G_tb − G_bu + G_bb = (w_t − w_b)ᵀ(w_u − w_b), without reading a weight again.  Each entry
        carries the rounding of the four, so one far smaller than they are has fewer digits.

        Raises
        ------
        InputError
            If there is no row, one does not exist, or they do not ascend.

        Examples
        --------
        >>> walk = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])  # three checkpoints of two parameters
        >>> g = GramMatrices((0, 10, 20), {"w": walk @ walk.T}, {"w": 2}, {"w": 0.0}, {})
        >>> g.window([1, 2]).matrices["w"]
        array([[0., 0.],
               [0., 4.]])
        """
        chosen = list(rows)
        in_range = all(0 <= row < len(self.steps) for row in chosen)
        if not chosen or not in_range or any(b <= a for a, b in pairwise(chosen)):
            raise InputError(f"rows {chosen} are no window of {len(self.steps)} steps; give them ascending")
        return replace(
            self,
            steps=tuple(self.steps[row] for row in chosen),
            matrices={name: _rebased(matrix, chosen) for name, matrix in self.matrices.items()},
            samples={name: sample[chosen] for name, sample in self.samples.items()},
        )


def _rebased(matrix: np.ndarray[Any, Any], rows: Sequence[int]) -> np.ndarray[Any, Any]:
    part = matrix[np.ix_(rows, rows)]
    if not part[0].any():  # the base stays what it was, or never moved away from it
        return part
    moved = (part - part[:, :1]) - (part[:1] - part[0, 0])
    # This order of subtractions makes row and column 0 exactly zero, and the rest unsymmetric in the last bit.
    symmetric: np.ndarray[Any, Any] = 0.5 * (moved + moved.T)
    return symmetric
