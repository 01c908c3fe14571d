"""The first singular component of each matrix's update: what the method ``rank1-matrix`` extends.

Owns the search for it, over pieces of a matrix that are held in memory or read again for every pass.  What is
then written is the business of `ckptlin.block_rank_one`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import NonFiniteError
from ckptlin.finite import require_finite
from ckptlin.kernels.rank_one import WIDTH, add_products, add_rank_one, row_products
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block, TensorSpec, thread_buffer

__all__ = ["MAX_PASSES", "Direction", "RankOneUpdate", "as_matrices", "find_update", "leading_direction"]

# Noise alone, whose singular values crowd at the top, takes 20 to 38 passes (sides of 500 to 9000), a component
# that stands out 6 to 13, and values that fall off by a fifth each 4.
MAX_PASSES = 40
# ‖DᵀD·v − σ²·v‖ relative to σ²; what is lost of σ² is of the order of its square.
_TOLERANCE = 1e-6


def as_matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return how a tensor's elements divide into matrices: their number, rows and columns.

    A vector is a matrix of one column, whose update has rank one: its line through two points.  Three
    dimensions are a stack of matrices (fused experts), four and more one matrix of the first by all others
    (the kernel of a convolution).

    Examples
    --------
    >>> as_matrices((4, 6)), as_matrices((8, 4, 6)), as_matrices((5,)), as_matrices(())
    ((1, 4, 6), (8, 4, 6), (1, 5, 1), (1, 1, 1))
    >>> as_matrices((16, 3, 7, 7))
    (1, 16, 147)
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    return 1, shape[0], math.prod(shape[1:])


@dataclass(frozen=True, slots=True)
class Direction:
    """The first right singular vector of a matrix.

    Attributes
    ----------
    vector : numpy.ndarray
        v, ``(num_columns,) float64`` of length 1; its sign means nothing.
    num_passes : int
        How often the matrix was multiplied.
    residual : float
        ‖DᵀD·v − σ²·v‖ / σ².
    """

    vector: np.ndarray[Any, Any]
    num_passes: int
    residual: float

    @property
    def has_converged(self) -> bool:
        """Whether the residual is within the tolerance."""
        return self.residual <= _TOLERANCE


def leading_direction(
    multiply: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
    num_columns: int,
    *,
    max_passes: int = MAX_PASSES,
) -> Direction | None:
    """Find the first right singular vector of a matrix D that is known by products alone.

    Block Lanczos on DᵀD: the Krylov space of a block of 8 vectors, orthogonalised in full, and the largest
    Ritz pair in it (Golub and Underwood, 1977; Musco and Musco, arXiv 1504.05477, bound its error without any
    gap).  The start is the same for every matrix of a width.

    Parameters
    ----------
    multiply : callable
        B ``(num_columns, 8) float64`` → Dᵀ(D·B), one pass over the matrix.
    num_columns : int
    max_passes : int

    Returns
    -------
    Direction or None
        None if D is zero.  What has not converged after ``max_passes`` says so by its residual.
    """
    block = _orthonormal(np.random.default_rng(0).normal(size=(num_columns, WIDTH)), None)
    basis = block
    projected = np.zeros((0, 0))
    num_passes, residual = 0, math.inf
    vector = np.zeros(num_columns)
    while num_passes < max_passes and residual > _TOLERANCE:
        width = block.shape[1]
        padded = np.zeros((num_columns, WIDTH))
        padded[:, :width] = block
        product = multiply(padded)[:, :width]
        num_passes += 1
        if not product.any() and num_passes == 1:
            return None
        column = basis.T @ product
        grown = np.zeros((basis.shape[1],) * 2)
        old = projected.shape[0]
        grown[:old, :old] = projected
        grown[:, -width:] = column
        grown[-width:, :] = column.T
        projected = 0.5 * (grown + grown.T)
        values, vectors = np.linalg.eigh(projected)
        ritz, weights = values[-1], vectors[:, -1]
        vector = basis @ weights
        rest = product - basis @ column
        rest -= basis @ (basis.T @ rest)
        residual = float(np.linalg.norm(rest @ weights[-width:]) / ritz) if ritz > 0 else 0.0
        block = _orthonormal(rest, basis)
        if block.shape[1] == 0:  # the space is the whole of what D reaches
            break
        basis = np.concatenate([basis, block], axis=1)
    return Direction(vector / np.linalg.norm(vector), num_passes, residual)


def _orthonormal(block: np.ndarray[Any, Any], basis: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Return orthonormal columns that span what of a block is orthogonal to a basis."""
    columns: list[np.ndarray[Any, Any]] = []
    scale = np.abs(block).max(initial=0.0)
    for column in block.T:
        before = float(np.linalg.norm(column))
        vector = column.copy()
        for _ in range(2):  # "twice is enough" (Parlett, The Symmetric Eigenvalue Problem, 6.9)
            if basis is not None:
                vector -= basis @ (basis.T @ vector)
            for other in columns:
                vector -= other * (other @ vector)
        after = float(np.linalg.norm(vector))
        if after > 1e-10 * before and after > 1e-14 * scale:
            columns.append(vector / after)
    return np.stack(columns, axis=1) if columns else np.zeros((block.shape[0], 0))


@dataclass(frozen=True, slots=True)
class RankOneUpdate:
    """The first singular component σ·u·vᵀ of the update of each matrix of a tensor, times a factor.

    Attributes
    ----------
    left : numpy.ndarray
        σ·u = D·v times the factor, ``(num_matrices * num_rows,) float64``.
    right : numpy.ndarray
        v, ``(num_matrices, num_columns) float64``.
    num_rows : int
        Of one matrix.
    num_unconverged : int
        Matrices whose direction had not converged.
    """

    left: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]
    num_rows: int
    num_unconverged: int

    def add_to(self, total: np.ndarray[Any, Any], block: Block) -> None:
        """Add it to the elements of a block, ``(block.num_params,) float64``."""
        add_rank_one(total, block.start, self.left, self.right, self.num_rows)


def find_update(
    source: TrajectoryStore | RunTrajectories,
    spec: TensorSpec,
    rows: tuple[int, int],
    factor: float,
    held_bytes: int,
) -> RankOneUpdate:
    """Find the first singular component of the update between two rows of the source, for each matrix.

    Parameters
    ----------
    held_bytes : int
        A matrix whose two checkpoints are no larger is read once and held; any other is read once a pass.

    Raises
    ------
    NonFiniteError
        If a weight of either checkpoint is NaN or infinite, or their squares leave float64.
    """
    num_matrices, num_rows, num_columns = as_matrices(spec.shape)
    left = np.zeros(num_matrices * num_rows)
    right = np.zeros((num_matrices, num_columns))
    num_unconverged = 0
    for matrix in range(num_matrices):
        update = _MatrixUpdate(source, spec, rows, matrix * num_rows * num_columns, held_bytes)
        if num_columns == 1:  # its own component; a pass would say so
            direction = Direction(np.ones(1), 0, 0.0)
        else:
            found = leading_direction(update.multiply, num_columns)
            if found is None:
                continue
            direction = found
        num_unconverged += not direction.has_converged
        # To float32, so that it does not matter how the BLAS of another worker divides its sums.
        vector = direction.vector.astype(np.float32).astype(np.float64)
        right[matrix] = vector
        left[matrix * num_rows : (matrix + 1) * num_rows] = factor * update.times(vector) / (vector @ vector)
    return RankOneUpdate(left, right, num_rows, num_unconverged)


class _MatrixUpdate:
    """The update of one matrix of a tensor, in pieces of whole rows."""

    def __init__(
        self,
        source: TrajectoryStore | RunTrajectories,
        spec: TensorSpec,
        rows: tuple[int, int],
        start: int,
        held_bytes: int,
    ) -> None:
        _, num_rows, self._num_columns = as_matrices(spec.shape)
        self._source = source
        self._spec = spec
        self._rows = rows
        self._start, self._stop = start, start + num_rows * self._num_columns
        self._held: list[np.ndarray[Any, Any]] | None = None
        if 2 * (self._stop - self._start) * spec.dtype.itemsize <= held_bytes:
            self._held = [piece.copy() for piece in self._pieces()]

    def multiply(self, basis: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return Dᵀ(D·B)."""
        products = np.zeros_like(basis)
        for first, last in self._pieces() if self._held is None else self._held:
            add_products(first, last, self._spec.dtype, basis, products)
        self._require_finite(products)
        return products

    def times(self, vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return D·v."""
        parts = [
            row_products(first, last, self._spec.dtype, vector)
            for first, last in (self._pieces() if self._held is None else self._held)
        ]
        products = np.concatenate(parts)
        self._require_finite(products)
        return products

    def _pieces(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yield bits ``(2, n)`` of whole rows, in order; each is gone with the next."""
        pending: list[np.ndarray[Any, Any]] = []
        for block in self._source.blocks(self._spec.name):
            if block.stop <= self._start or block.start >= self._stop:
                continue
            bits = self._source.read_block(block, self._rows, thread_buffer())
            low, high = max(self._start - block.start, 0), min(self._stop, block.stop) - block.start
            piece = bits[:, low:high]
            if not pending and piece.shape[1] % self._num_columns == 0:
                yield piece
                continue
            pending.append(piece.copy())
            size = sum(part.shape[1] for part in pending)
            whole = size - size % self._num_columns
            if whole:
                joined = np.concatenate(pending, axis=1)
                pending = [joined[:, whole:].copy()] if whole < size else []
                yield joined[:, :whole]

    def _require_finite(self, products: np.ndarray[Any, Any]) -> None:
        if np.isfinite(products).all():
            return
        for block in self._source.blocks(self._spec.name):
            require_finite(
                self._source, block, self._rows, way_out="let the tensor keep its last value with --keep"
            )
        raise NonFiniteError(
            f"the update of tensor `{self._spec.name}` of {self._source.location} is so large that its squares "
            "leave float64; let the tensor keep its last value with --keep"
        )
