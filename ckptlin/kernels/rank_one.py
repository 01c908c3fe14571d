"""Products with the update of a matrix, D = W_T − W_1, straight from the bits of its two checkpoints.

    i, j    row and column of D
    k       column of a basis, _WIDTH of them
    t       D·B or D·v, a row at a time

D is taken in float64, exactly for all but float64 itself, and never stored.  Rows are added one after the other
by one thread, so that no result depends on how a matrix was cut into pieces of whole rows.
"""

from typing import Any

import numba as nb
import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.kernels.widen import TAGS, widen

__all__ = ["WIDTH", "add_products", "add_rank_one", "row_products"]

# Columns of a basis that are multiplied in one go: a cache line of float64.
WIDTH = 8
_WIDTH = WIDTH


def add_products(
    first: np.ndarray[Any, Any],
    last: np.ndarray[Any, Any],
    dtype: TensorDType,
    basis: np.ndarray[Any, Any],
    products: np.ndarray[Any, Any],
) -> None:
    """Add Dᵀ(D·B) of some whole rows of a matrix.

    Parameters
    ----------
    first, last : numpy.ndarray
        ``(num_rows * num_columns,)`` bits of the rows in two checkpoints.
    dtype : TensorDType
        bfloat16, float16, float32 or float64.
    basis : numpy.ndarray
        B, ``(num_columns, WIDTH) float64``.
    products : numpy.ndarray
        ``(num_columns, WIDTH) float64``, added to.
    """
    _add_products(first, last, TAGS[dtype.zarr], basis, products)


def row_products(
    first: np.ndarray[Any, Any], last: np.ndarray[Any, Any], dtype: TensorDType, vector: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return D·v of some whole rows of a matrix, ``(num_rows,) float64``; v is ``(num_columns,) float64``."""
    products = np.empty(first.size // vector.size)
    _row_products(first, last, TAGS[dtype.zarr], vector, products)
    return products


def add_rank_one(
    total: np.ndarray[Any, Any],
    start: int,
    left: np.ndarray[Any, Any],
    right: np.ndarray[Any, Any],
    num_rows: int,
) -> None:
    """Add the outer products t·vᵀ of stacked matrices to a stretch of their elements.

    Parameters
    ----------
    total : numpy.ndarray
        ``(n,) float64``: the elements from ``start`` on, in C order over matrices, rows and columns.
    left : numpy.ndarray
        t, ``(num_matrices * num_rows,) float64``.
    right : numpy.ndarray
        v of each matrix, ``(num_matrices, num_columns) float64``.
    """
    _add_rank_one(total, start, left, right, num_rows)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_products(first: Any, last: Any, tag: Any, basis: Any, products: Any) -> None:
    num_columns = basis.shape[0]
    d = np.empty(num_columns, np.float64)
    t = np.empty(_WIDTH, np.float64)
    for i in range(first.size // num_columns):
        offset = i * num_columns
        for j in range(num_columns):
            d[j] = np.float64(widen(last[offset + j], tag)) - np.float64(widen(first[offset + j], tag))
        for k in range(_WIDTH):
            t[k] = 0.0
        for j in range(num_columns):
            for k in range(_WIDTH):
                t[k] += d[j] * basis[j, k]
        for j in range(num_columns):
            for k in range(_WIDTH):
                products[j, k] += d[j] * t[k]


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _row_products(first: Any, last: Any, tag: Any, vector: Any, products: Any) -> None:
    num_columns = vector.size
    for i in range(products.size):
        offset = i * num_columns
        t = 0.0
        for j in range(num_columns):
            d = np.float64(widen(last[offset + j], tag)) - np.float64(widen(first[offset + j], tag))
            t += d * vector[j]
        products[i] = t


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_rank_one(total: Any, start: Any, left: Any, right: Any, num_rows: Any) -> None:
    num_columns = right.shape[1]
    i, j = start // num_columns, start % num_columns
    for n in range(total.size):
        if left[i] != 0.0:  # −0.0 of a row that never moved stays
            total[n] += left[i] * right[i // num_rows, j]
        j += 1
        if j == num_columns:
            i, j = i + 1, 0
