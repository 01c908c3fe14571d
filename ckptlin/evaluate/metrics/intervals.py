"""Confidence intervals of a mean of per-problem values that lie from 0 to 1.

Both kinds are Wilson's score interval with an effective number of observations in the place of the number of
trials.  It was chosen by simulation (`benchmarks.coverage`; the table stands in docs/metrics.md): at 30
problems the percentile and BCa bootstraps cover too seldom, the bootstrap-t too often and at more width.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError
from ckptlin.student_t import two_sided_quantile

__all__ = [
    "Interval",
    "interval_over_problems",
    "interval_over_samples",
    "normal_quantile",
    "score_interval",
    "student_quantile",
]

# A mean so near to 0 or 1 is there but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """From where to where, and how probably the truth lies within.

    Attributes
    ----------
    low, high : float
    level : float
        Nominal: 0.95 for 95%.
    """

    low: float
    high: float
    level: float

    @property
    def width(self) -> float:
        """High minus low."""
        return self.high - self.low

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"low": self.low, "high": self.high, "level": self.level}


def interval_over_problems(
    values: npt.ArrayLike, *, samples_per_problem: float, level: float = 0.95
) -> Interval:
    """Return the interval of a metric if other problems of the same kind had been asked.

    Problems are taken as a random sample of all possible ones; what varies is which problems were drawn and
    what was answered.  The effective number of observations is N·m(1−m)/s², m and s² the values' mean and
    variance over N problems: N where each value is 0 or 1, more where they lie between.  The quantile is
    Student's with N − 1 degrees of freedom, since s² is an estimate.

    For values of a mean of n samples s² is m(1−m)/n at least in expectation, and an s² that comes out smaller
    is raised to it; so values that are all equal have an interval too.  Where they are all 0, or all 1, s² says
    nothing, and each problem counts as one observation.

    Parameters
    ----------
    values : array_like of float
        ``(num_problems,)``, each from 0 to 1.
    samples_per_problem : float
        n.
    level : float

    Raises
    ------
    InputError
        If there is no value, one is not from 0 to 1, or the level is no probability.

    Examples
    --------
    >>> found = interval_over_problems([0.0, 1.0, 1.0, 0.5, 0.25, 0.75], samples_per_problem=4)
    >>> round(found.low, 3), round(found.high, 3)
    (0.222, 0.873)
    >>> nothing_solved = interval_over_problems([0.0] * 30, samples_per_problem=4)
    >>> nothing_solved.low, round(nothing_solved.high, 3)
    (0.0, 0.122)
    """
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or not given.size:
        raise InputError(f"an interval needs the values of at least one problem, not shape {given.shape}")
    if not ((given >= 0.0) & (given <= 1.0)).all():
        raise InputError("an interval over problems needs values from 0 to 1")
    num, mean = len(given), float(given.mean())
    largest = mean * (1.0 - mean)
    share = 1.0
    if largest > _ROUNDING and num > 1:
        share = float(given.var(ddof=1)) / largest
        share = min(max(share, 1.0 / max(samples_per_problem, 1.0)), 1.0)
    quantile = student_quantile(level, num - 1) if num > 1 else normal_quantile(level)
    return score_interval(mean, num / share, quantile=quantile, level=level)


def interval_over_samples(
    mean: float, variance: float, *, num_problems: int, num_groups: float, level: float = 0.95
) -> Interval:
    """Return the interval of a metric on these very problems, if they had been asked without end.

    What varies is what was answered, not which problems were asked.  The effective number of observations is
    m(1−m)/variance, and at least the number of problems: a mean of N independent values from 0 to 1 has a
    variance of m(1−m)/N at most.

    Parameters
    ----------
    mean : float
        m, from 0 to 1.
    variance : float
        Of m, by sampling alone (`ckptlin.evaluate.metrics.sampling_variance`).
    num_problems : int
    num_groups : float
        Samples of all problems, over k: independent observations of the metric, which count where m is 0 or 1
        and the variance says nothing.
    level : float

    Examples
    --------
    >>> found = interval_over_samples(0.5, 0.0004, num_problems=30, num_groups=480)
    >>> round(found.low, 3), round(found.high, 3)
    (0.461, 0.539)
    """
    largest = mean * (1.0 - mean)
    if largest <= _ROUNDING:
        effective = max(num_groups, 1.0)
    else:
        effective = max(largest / variance if variance > 0.0 else math.inf, float(num_problems))
    return score_interval(mean, effective, quantile=normal_quantile(level), level=level)


def score_interval(mean: float, effective: float, *, quantile: float, level: float) -> Interval:
    """Return the means μ with |m − μ| ≤ q·√(μ(1−μ)/n) (Wilson 1927), for n effective observations.

    It always has a width, and lies from 0 to 1; at m = 0 it goes from 0 to q²/(n + q²).
    """
    if math.isinf(effective):
        return Interval(mean, mean, level)
    shrink = quantile**2 / effective
    centre = (mean + shrink / 2.0) / (1.0 + shrink)
    half = quantile / (1.0 + shrink) * math.sqrt((mean * (1.0 - mean) + shrink / 4.0) / effective)
    # At 0 and 1 the ends are exact, but for rounding.
    low = 0.0 if mean <= 0.0 else max(centre - half, 0.0)
    high = 1.0 if mean >= 1.0 else min(centre + half, 1.0)
    return Interval(low, high, level)


def normal_quantile(level: float) -> float:
    """Return what a standard normal number exceeds on neither side with probability ``level``.

    Raises
    ------
    InputError
        If the level is no probability.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"the level of an interval must lie between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2.0)


@lru_cache(maxsize=64)
def student_quantile(level: float, degrees: int) -> float:
    """Return `ckptlin.student_t.two_sided_quantile`, which takes milliseconds at hundreds of degrees, once."""
    return two_sided_quantile(level, degrees)
