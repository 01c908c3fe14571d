"""What the kernels must compute, in plain NumPy: slow, in float64, and written another way.

The kernels are tested against this module, and nothing else uses it.  It fits with `numpy.polyfit`, takes R²
from the residuals (1 − SS_res/SS_tot, which equals the kernels' squared correlation for a least squares line),
and shifts and scales every trajectory by powers of two before it squares anything, so that no magnitude of
weights overflows or underflows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401 (registers numpy.spacing for bfloat16)
import numpy as np
from numpy.typing import NDArray

from ckptlin.dtypes import bits_dtype
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

__all__ = ["OracleFit", "fit_block"]


@dataclass(frozen=True)
class OracleFit:
    """The fit of each parameter of a block, and what its summary needs; all arrays are ``(num_params,)``.

    Attributes
    ----------
    r2 : float64
        NaN where ``unchanged`` or ``undefined``.
    slope, intercept : float64
        Per step, and at step 0; a parameter without R² has slope 0 and its own value as intercept.
    deviation : float64
        Standard deviation over the steps, with divisor T.
    unchanged : bool
        Whether the bits are the same at every step.
    undefined : bool
        Whether the bits change but the value does not: −0.0 and 0.0.
    distinct : int64
        Number of distinct values.
    spread : float64
        Largest less smallest value.
    paper : bool
        Whether it belongs to the paper's population.
    variation, residual : float64
        Squared deviations from the mean, and from the line.
    rounding : float64
        Squared deviations that rounding to the element type explains: T·ulp²/12 of the first value, 0
        without R².
    first, last : float64
    """

    r2: NDArray[np.float64]
    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]
    deviation: NDArray[np.float64]
    unchanged: NDArray[np.bool_]
    undefined: NDArray[np.bool_]
    distinct: NDArray[np.int64]
    spread: NDArray[np.float64]
    paper: NDArray[np.bool_]
    variation: NDArray[np.float64]
    residual: NDArray[np.float64]
    rounding: NDArray[np.float64]
    first: NDArray[np.float64]
    last: NDArray[np.float64]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of parameters, by the names in `ckptlin.kernels.regression.COUNT`."""
        defined = ~np.isnan(self.r2)
        counts = {
            "params": self.r2.size,
            "unchanged": self.unchanged.sum(),
            "undefined": self.undefined.sum(),
            "moved_above_7": (self.r2[defined] > 0.7).sum(),
            "moved_above_9": (self.r2[defined] > 0.9).sum(),
            "paper": self.paper.sum(),
            "paper_above_7": (self.r2[self.paper] > 0.7).sum(),
            "paper_above_9": (self.r2[self.paper] > 0.9).sum(),
        }
        return {name: int(count) for name, count in counts.items()}

    @property
    def sums(self) -> dict[str, float]:
        """Totals over the parameters, by the names in `ckptlin.kernels.regression.SUM`."""
        sums = {
            "r2_moved": np.nansum(self.r2),
            "r2_paper": np.nansum(self.r2[self.paper]),
            "update": np.sum((self.last - self.first) ** 2),
            "first": np.sum(self.first**2),
            "variation": np.sum(self.variation),
            "residual": np.sum(self.residual),
            "rounding": np.sum(self.rounding),
        }
        return {name: float(total) for name, total in sums.items()}


def fit_block(weights: NDArray[Any], steps: Sequence[int]) -> OracleFit:
    """Fit every parameter of a block on the step.

    Parameters
    ----------
    weights : (num_steps, num_params) of a checkpoint's dtype
        Finite values.
    steps : sequence of int
        At least two, distinct.
    """
    bits = np.ascontiguousarray(weights).view(bits_dtype(weights.dtype))
    values = weights.astype(np.float64)
    num_steps = len(steps)
    s = np.array([step - min(steps) for step in steps], np.float64)  # integers: exact at any size
    mean_step = min(steps) + s.mean()
    s_scale = np.abs(s - s.mean()).max()
    x = (s - s.mean()) / s_scale

    # A difference of float64 values over half the range would overflow; powers of two scale exactly.
    spread = values.max(axis=0) - values.min(axis=0)
    exponent = np.frexp(np.abs(values).max(axis=0))[1]
    shifted = np.ldexp(values, -exponent)
    shifted = shifted - shifted[0]
    finer = np.frexp(np.abs(shifted).max(axis=0))[1]
    d = np.ldexp(shifted, -finer)

    slope, level = np.polyfit(x, d, 1)
    ss_total = np.sum((d - d.mean(axis=0)) ** 2, axis=0)
    ss_residual = np.sum((d - (slope * x[:, None] + level)) ** 2, axis=0)
    unchanged = (bits == bits[0]).all(axis=0)
    constant = (values == values[0]).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.clip(1 - ss_residual / ss_total, 0.0, 1.0)
    r2[constant] = np.nan
    slope[constant] = 0.0
    level[constant] = 0.0
    ss_residual[constant] = 0.0

    ordered = np.sort(values, axis=0)
    distinct = 1 + (ordered[1:] != ordered[:-1]).sum(axis=0)
    ulp = np.spacing(np.abs(weights[0])).astype(np.float64)
    back = exponent + finer
    per_step = np.ldexp(slope, back) / s_scale
    return OracleFit(
        r2=r2,
        slope=per_step,
        intercept=values[0] + np.ldexp(level, back) - per_step * mean_step,
        deviation=np.ldexp(np.sqrt(ss_total / num_steps), back),
        unchanged=unchanged,
        undefined=constant & ~unchanged,
        distinct=distinct,
        spread=spread,
        paper=(spread > PAPER_MIN_RANGE) & (distinct >= PAPER_MIN_DISTINCT),
        variation=np.ldexp(ss_total, 2 * back),
        residual=np.ldexp(ss_residual, 2 * back),
        rounding=np.where(constant, 0.0, num_steps * ulp**2 / 12),
        first=values[0],
        last=values[-1],
    )
