"""What fits of the stores of steps share: the regression of a block of float32 values, counts of R², rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckptlin.dtypes import from_numpy
from ckptlin.kernels.regression import Abscissa, BlockFit, BlockRegression
from ckptlin.summary import NUM_BINS

__all__ = ["FLOAT32", "flat_row", "r2_histogram", "regress"]

FLOAT32 = from_numpy("<f4")


def regress(values: np.ndarray[Any, Any], abscissa: Abscissa, statistics: Sequence[str]) -> BlockFit:
    """Fit each column of ``(num_steps, length) float32`` values, carefully where the fast way is not enough.

    See `ckptlin.kernels.regression.BlockRegression`.
    """
    bits = np.ascontiguousarray(values).view(FLOAT32.bits)
    for careful in (False, True):
        regression = BlockRegression(FLOAT32, abscissa, bits.shape[1], tuple(statistics), careful=careful)
        fit, is_trusted = regression.fit(bits)
        if is_trusted:
            break
    return fit


def r2_histogram(r2: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Count R², none of them NaN, in bins of 1/1000: ``(1000,) float64``."""
    places = np.minimum((r2 * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return np.bincount(places, minlength=NUM_BINS).astype(np.float64)


def flat_row(data: Mapping[str, Any]) -> dict[str, Any]:
    """Put the figures of groups beside the others, ``moved_mean`` for ``mean`` in ``moved``."""
    row: dict[str, Any] = {}
    for name, value in data.items():
        row |= {f"{name}_{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return row
