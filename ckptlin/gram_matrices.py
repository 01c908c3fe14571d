"""The inner products of a run's movement: one small matrix a tensor, from which everything affine follows.

This module owns the matrices as data, and what follows from them by algebra alone; `ckptlin.gram` computes,
keeps and reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptlin.errors import InputError

__all__ = ["GramMatrices"]


@dataclass(frozen=True)
class GramMatrices:
    """The Gram matrices of the tensors of a run.

    Attributes
    ----------
    steps : tuple of int
        Training steps, ascending; T of them.
    matrices : dict of str to numpy.ndarray
        By tensor, ``(T, T) float64``: ⟨w_t − w_1, w_u − w_1⟩ over all its parameters.  The first row and column
        are zero.
    num_params : dict of str to int
    rounding : dict of str to float
        What rounding to the tensor's type adds to one checkpoint's squared error: ulp(w)²/12 over the
        parameters that moved; 0 for float64.
    samples : dict of str to numpy.ndarray
        By tensor, ``(T, n)`` of its own dtype: trajectories of parameters at even distances.  May be empty.

    Raises
    ------
    InputError
        If an array does not have the shape that the steps ask for, or a tensor lacks one of the figures.
    """

    steps: tuple[int, ...]
    matrices: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)
    num_params: Mapping[str, int] = field(repr=False)
    rounding: Mapping[str, float] = field(repr=False)
    samples: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)

    def __post_init__(self) -> None:
        num_steps = len(self.steps)
        for name, matrix in self.matrices.items():
            if matrix.shape != (num_steps, num_steps):
                raise InputError(
                    f"the Gram matrix of tensor `{name}` has shape {matrix.shape}, "
                    f"expected {(num_steps, num_steps)}: a row and a column for each step"
                )
        for figures in (self.num_params, self.rounding):
            if figures.keys() != self.matrices.keys():
                raise InputError("the Gram matrices and their figures are not of the same tensors")
        for name, sample in self.samples.items():
            if sample.ndim != 2 or sample.shape[0] != num_steps:
                raise InputError(
                    f"the sample of tensor `{name}` has shape {sample.shape}, expected a row for each of "
                    f"{num_steps} steps"
                )

    def total(self) -> np.ndarray[Any, Any]:
        """Return the whole model's matrix, ``(T, T) float64``: the sum over the tensors."""
        total = np.zeros((len(self.steps), len(self.steps)))
        for matrix in self.matrices.values():
            total += matrix
        return total

    def window(self, rows: Sequence[int]) -> "GramMatrices":
        """Return the matrices of some of the steps, relative to the first of them.

        With b the first row, G'_tu = G_tu − G_tb − G_bu + G_bb; `rounding` stays that of all steps.

        Parameters
        ----------
        rows : sequence of int
            Indices into `steps`, ascending, at least one.
        """
        rows = list(rows)
        base = rows[0]

        def rebased(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            part = matrix[np.ix_(rows, rows)]
            column = matrix[rows, base]
            moved: np.ndarray[Any, Any] = part - column[:, None] - column[None, :] + matrix[base, base]
            return moved

        return GramMatrices(
            steps=tuple(self.steps[row] for row in rows),
            matrices={name: rebased(matrix) for name, matrix in self.matrices.items()},
            num_params=self.num_params,
            rounding=self.rounding,
            samples={name: sample[rows] for name, sample in self.samples.items()},
        )
