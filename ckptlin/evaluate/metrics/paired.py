"""Two models on the same problems: the difference, how sure it is, and relative gains averaged both ways."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics.intervals import Interval, student_quantile
from ckptlin.evaluate.metrics.samples import checked_scores

__all__ = [
    "Comparison",
    "RelativeGains",
    "compare",
    "interval_of_difference",
    "mcnemar",
    "relative_gains",
    "sign_flip_p_value",
]

# So many differences other than 0 have 65,536 patterns of signs, which are enumerated; of more, so many are
# drawn.
_MOST_ENUMERATED = 16
_NUM_DRAWN = 9_999
_DRAWN_AT_ONCE = 1 << 20  # signs
# Sums that differ by rounding alone are equal.
_ROUNDING = 1e-12
# What one more problem would have differed by is n^(−3/8): the smallest power tried with which no case of
# `benchmarks.coverage` covers less than nominal by more than 3 points.
_PRIOR_POWER = -0.75
FEWEST_PROBLEMS = 30


@dataclass(frozen=True, slots=True)
class RelativeGains:
    """By how much second values exceed first ones, relative to them; items are problems, tasks or budgets.

    Attributes
    ----------
    gain_of_means : float or None
        mean(second)/mean(first) − 1: each item weighs as much as its value.  None where the first is 0.
    mean_of_gains : float or None
        Mean of second_i/first_i − 1: small firsts weigh most.  None where no item is left.
    num_left_out : int
        Items whose first is 0, which have no gain of their own and are not in ``mean_of_gains``.
    """

    gain_of_means: float | None
    mean_of_gains: float | None
    num_left_out: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found; differences are second minus first.

    Attributes
    ----------
    num_problems : int
    first, second : float
        Mean scores: the mean over problems of each one's mean.
    difference : float
    interval : Interval
        Of the difference, over problems.
    p_value : float
        Of the sign-flip permutation test.
    is_exact : bool
        Whether all signs were enumerated for it.
    mcnemar_p_value : float or None
        None unless each problem has one binary outcome in both.
    gains : RelativeGains
        Problem by problem.
    warnings : tuple of str
    """

    num_problems: int
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    is_exact: bool
    mcnemar_p_value: float | None
    gains: RelativeGains
    warnings: tuple[str, ...]

    @property
    def is_told(self) -> bool:
        """Whether the two can be told apart at the interval's level."""
        return self.p_value < 1.0 - self.interval.level

    def verdict(self, *, first: str = "first", second: str = "second") -> str:
        """Say in a sentence which solves more, or that it cannot be told."""
        low, high = _points(self.interval.low), _points(self.interval.high)
        p_value = f"p = {self.p_value:.2g}" if self.p_value >= 0.001 else "p < 0.001"
        figures = f"{_points(self.difference)} points [{low}, {high}], {p_value}"
        end = "on 1 problem" if self.num_problems == 1 else f"on {self.num_problems} problems"
        if self.difference == 0.0:
            return f"{second} solves as many as {first}: {figures}, {end}"
        more = f"{second} solves {'more' if self.difference > 0 else 'fewer'}"
        if self.is_told:
            return f"{more} than {first}: {figures}, {end}"
        return f"{more} than {first}: {figures}: within the noise {end}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "warnings": list(self.warnings), "verdict": self.verdict()}


def compare(
    first: Sequence[npt.ArrayLike], second: Sequence[npt.ArrayLike], *, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two models by their mean scores on the same problems, in the same order.

    The interval is Student's, over the problems' differences d_i, to which one more of size n^(−3/8) is added
    in the sum of squares, n the least number of samples: where few problems differ their variance is
    underestimated, and where none does it would be 0.

    Parameters
    ----------
    first, second : sequence of array_like
        Scores of each problem's samples, ``(num_samples,)`` from 0 to 1; their numbers may differ.
    level : float
    seed : int
        Of the permutation test, where signs are drawn.

    Raises
    ------
    InputError
        If there are no problems, not as many in both, or a score is not from 0 to 1.

    Examples
    --------
    >>> before, after = [[0, 0], [1, 0], [1, 1], [0, 0]], [[0, 1], [1, 1], [1, 1], [0, 0]]
    >>> compare(before, after).verdict(first="step 0", second="step 100")
    'step 100 solves more than step 0: +25.0 points [−59.4, +100.0], p = 0.5: within the noise on 4 problems'
    """
    one, two = checked_scores(first), checked_scores(second)
    if len(one) != len(two):
        raise InputError(f"a comparison needs the same problems, not {len(one)} and {len(two)}")
    means = np.array([[s.mean() for s in one], [s.mean() for s in two]])
    differences = means[1] - means[0]
    differences[np.abs(differences) < _ROUNDING] = 0.0
    difference = float(differences.mean())
    least = min(len(s) for s in (*one, *two))
    single = all(len(s) == 1 and s[0] in (0.0, 1.0) for s in (*one, *two))
    p_value, is_exact = sign_flip_p_value(differences, seed=seed)
    warnings = []
    if len(one) < FEWEST_PROBLEMS:
        warnings.append(f"{len(one)} problems are few: the interval was tried on {FEWEST_PROBLEMS} and more")
    if not differences.any():
        warnings.append("no problem differs, so that the interval's width is an assumption")
    elif np.count_nonzero(differences) < 6:
        # 2^(1−5) > .05: no pattern of five signs is rare enough.
        warnings.append(f"only {np.count_nonzero(differences)} problems differ, too few to tell the two apart")
    return Comparison(
        num_problems=len(one),
        first=float(means[0].mean()),
        second=float(means[1].mean()),
        difference=difference,
        interval=interval_of_difference(differences, num_samples=least, level=level),
        p_value=p_value,
        is_exact=is_exact,
        mcnemar_p_value=mcnemar(differences) if single else None,
        gains=relative_gains(means[0], means[1]),
        warnings=tuple(warnings),
    )


def interval_of_difference(differences: npt.ArrayLike, *, num_samples: int, level: float = 0.95) -> Interval:
    """Return the interval of a mean difference over problems; `compare` says how.

    Parameters
    ----------
    differences : array_like
        ``(num_problems,)``, each from −1 to 1.
    num_samples : int
        The least of a problem.
    level : float
    """
    given = np.asarray(differences, np.float64)
    num, mean = len(given), float(given.mean())
    # One problem leaves no degree of freedom, and nothing is known.
    if num == 1:
        return Interval(-1.0, 1.0, level)
    squares = float(((given - mean) ** 2).sum()) + float(num_samples) ** _PRIOR_POWER
    half = student_quantile(level, num - 1) * math.sqrt(squares / ((num - 1) * num))
    return Interval(max(mean - half, -1.0), min(mean + half, 1.0), level)


def sign_flip_p_value(differences: npt.ArrayLike, *, seed: int = 0) -> tuple[float, bool]:
    """Return how often the mean is as far from 0 if each difference may have had either sign; and if exactly.

    With up to 16 differences other than 0 all patterns of signs are enumerated; with more, 9999 are drawn, and
    the share is (1 + b)/(1 + 9999), b those as far (Phipson and Smyth 2010), which keeps the test's level.

    Examples
    --------
    >>> sign_flip_p_value([0.25, 0.5, 0.0, 0.25])
    (0.25, True)
    """
    given = np.asarray(differences, np.float64)
    given = given[given != 0.0]
    if not given.size:
        return 1.0, True
    bar = abs(float(given.sum())) - _ROUNDING * float(np.abs(given).sum())
    if len(given) <= _MOST_ENUMERATED:
        sums = np.zeros(1)
        for value in given:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= bar)), True
    generator = np.random.default_rng(seed)
    as_far, left = 0, _NUM_DRAWN
    while left:
        rows = min(left, max(_DRAWN_AT_ONCE // len(given), 1))
        signs = 2.0 * generator.integers(0, 2, (rows, len(given))) - 1.0
        as_far += int(np.count_nonzero(np.abs(signs @ given) >= bar))
        left -= rows
    return (1 + as_far) / (1 + _NUM_DRAWN), False


def mcnemar(differences: npt.ArrayLike) -> float:
    """Return the p-value of the exact McNemar test: two-sided binomial, on the problems that only one solves.

    Parameters
    ----------
    differences : array_like
        Each −1, 0 or 1.

    Examples
    --------
    >>> mcnemar([1, 1, 1, 1, 1, -1, 0, 0])
    0.21875
    """
    given = np.asarray(differences)
    better, worse = int(np.count_nonzero(given > 0)), int(np.count_nonzero(given < 0))
    num = better + worse
    tail = sum(math.comb(num, i) for i in range(min(better, worse) + 1))
    return float(min(2 * tail / 2**num, 1.0))


def relative_gains(first: npt.ArrayLike, second: npt.ArrayLike) -> RelativeGains:
    """Return relative gains, averaged both ways, which may differ even in sign.

    Parameters
    ----------
    first, second : array_like
        ``(num_items,)``, at least 0.

    Raises
    ------
    InputError
        If they are not as many, or there are none.

    Examples
    --------
    >>> found = relative_gains([0.1, 0.8], [0.2, 0.6])
    >>> round(found.gain_of_means, 3), round(found.mean_of_gains, 3)
    (-0.111, 0.375)
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != two.shape or one.ndim != 1 or not one.size:
        raise InputError(
            f"relative gains need two rows of values, as many in both, not shapes {one.shape} and {two.shape}"
        )
    kept = one != 0.0
    return RelativeGains(
        float(two.mean() / one.mean() - 1.0) if one.any() else None,
        float((two[kept] / one[kept] - 1.0).mean()) if kept.any() else None,
        int(np.count_nonzero(~kept)),
    )


def _points(value: float) -> str:
    return f"{100.0 * value:+.1f}".replace("-", "−")
