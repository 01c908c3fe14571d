"""All metrics of a model's graded answers to a task, each with both intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics.intervals import Interval, interval_over_problems, interval_over_samples
from ckptlin.evaluate.metrics.lengths import Lengths, lengths
from ckptlin.evaluate.metrics.majority import ballot, majority_curve
from ckptlin.evaluate.metrics.paired import FEWEST_PROBLEMS
from ckptlin.evaluate.metrics.pass_at_k import pass_at_k
from ckptlin.evaluate.metrics.samples import checked_like, checked_scores
from ckptlin.evaluate.metrics.sampling_variance import (
    fit_beta,
    majority_variance,
    mean_variance,
    pass_at_k_variance,
)

__all__ = ["Estimate", "Summary", "default_ks", "summarise"]

# The range that `benchmarks.coverage` holds the intervals to.
_LOWEST, _HIGHEST = 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric's value and how sure it is.

    Attributes
    ----------
    name : str
        ``avg@64``, ``pass@8``, ``maj@8``.
    value : float
        Mean over problems.
    over_problems : Interval
        Of other problems of the same kind.
    over_samples : Interval
        Of these very problems, asked again.
    warnings : tuple of str
        Why an interval may not be what it says.
    """

    name: str
    value: float
    over_problems: Interval
    over_samples: Interval
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "value": self.value,
            "over_problems": self.over_problems.to_dict(),
            "over_samples": self.over_samples.to_dict(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What `summarise` found.

    Attributes
    ----------
    num_problems : int
    num_samples : int
        The least of a problem.
    estimates : dict of str to Estimate
        By name: avg, then pass@k and maj@k by k.
    lengths : Lengths or None
    """

    num_problems: int
    num_samples: int
    estimates: Mapping[str, Estimate]
    lengths: Lengths | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "num_problems": self.num_problems,
            "num_samples": self.num_samples,
            "estimates": {name: estimate.to_dict() for name, estimate in self.estimates.items()},
            "lengths": None if self.lengths is None else self.lengths.to_dict(),
        }


def default_ks(num_samples: int) -> tuple[int, ...]:
    """Return 1, the powers of two up to a number of samples, and that number.

    Examples
    --------
    >>> default_ks(12), default_ks(1)
    ((1, 2, 4, 8, 12), (1,))
    """
    powers = {1 << i for i in range(num_samples.bit_length())}
    return tuple(sorted({k for k in powers if k <= num_samples} | {num_samples}))


def summarise(
    scores: Sequence[npt.ArrayLike],
    *,
    votes: Sequence[npt.ArrayLike] | None = None,
    num_tokens: Sequence[npt.ArrayLike] | None = None,
    finished: Sequence[npt.ArrayLike] | None = None,
    empty: Sequence[npt.ArrayLike] | None = None,
    ks: Sequence[int] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Summary:
    """Work out avg@n, pass@k and maj@k with both intervals, and the answers' lengths.

    avg is the mean score; pass@k and maj@k count a sample as correct if its score is 1.  Problems may have
    different numbers of samples; each weighs the same, and n is the least.

    Parameters
    ----------
    scores : sequence of array_like
        ``(num_samples,)`` of each problem, from 0 to 1.
    votes : sequence of array_like of int, optional
        Class of each sample's answer; −1 abstains.  Without it there is no maj@k.
    num_tokens, finished, empty : sequence of array_like, optional
        Of each sample, for `lengths`; without ``num_tokens`` there is none.
    ks : sequence of int, optional
        Default `default_ks`.
    level : float
        Of the intervals.
    seed : int
        Of the redrawn elections in the sampling variance of maj@n; nothing else is drawn.

    Raises
    ------
    InputError
        If inputs are not of the same samples, or a k exceeds a problem's samples.
    """
    checked = checked_scores(scores)
    sizes = np.array([len(of_problem) for of_problem in checked])
    least = int(sizes.min())
    wanted = default_ks(least) if ks is None else tuple(sorted(set(ks)))
    for k in wanted:
        if not 1 <= k <= least:
            raise InputError(f"k = {k} is not from 1 to {least}, the fewest samples that a problem has")
    num_correct = np.array([int((of_problem == 1.0).sum()) for of_problem in checked])
    estimates: dict[str, Estimate] = {}

    def add(name: str, values: np.ndarray[Any, Any], variances: np.ndarray[Any, Any], k: int) -> None:
        estimates[name] = _estimate(name, values, variances, sizes=sizes, k=k, level=level)

    means = np.array([of_problem.mean() for of_problem in checked])
    add(f"avg@{least}", means, mean_variance(checked), 1)
    for k in wanted:
        values = pass_at_k(num_correct, sizes, k)
        add(f"pass@{k}", values, pass_at_k_variance(num_correct, sizes, k), k)
    if votes is not None:
        classes = checked_like(votes, checked, name="votes")
        ballots = [ballot(v, s == 1.0) for v, s in zip(classes, checked, strict=True)]
        beta = fit_beta([sum(of_problem[0]) for of_problem in ballots], sizes)
        generator = np.random.default_rng(seed)
        for k in wanted:
            values = np.array([majority_curve(of_problem)[k - 1] for of_problem in ballots])
            variances = majority_variance(ballots, k, beta=beta, generator=generator)
            add(f"maj@{k}", values, variances, k)
    measured = None if num_tokens is None else lengths(num_tokens, checked, finished=finished, empty=empty)
    return Summary(len(checked), least, estimates, measured)


def _estimate(
    name: str,
    values: np.ndarray[Any, Any],
    variances: np.ndarray[Any, Any],
    *,
    sizes: np.ndarray[Any, Any],
    k: int,
    level: float,
) -> Estimate:
    num, mean = len(values), float(values.mean())
    return Estimate(
        name,
        mean,
        interval_over_problems(values, samples_per_problem=float(sizes.mean()), level=level),
        interval_over_samples(
            mean,
            float(variances.sum()) / num**2,
            num_problems=num,
            num_groups=float(sizes.sum()) / k,
            level=level,
        ),
        _doubts(values, mean, least=int(sizes.min())),
    )


def _doubts(values: np.ndarray[Any, Any], mean: float, *, least: int) -> tuple[str, ...]:
    doubts = []
    num = len(values)
    if num < FEWEST_PROBLEMS:
        few = "1 problem is" if num == 1 else f"{num} problems are"
        doubts.append(f"{few} few: the intervals were tried on {FEWEST_PROBLEMS} and more")
    if not _LOWEST <= mean <= _HIGHEST:
        doubts.append(
            f"the intervals were tried on values from {_LOWEST} to {_HIGHEST}, and this is {mean:.3g}"
        )
    if num > 1 and (values == values[0]).all():
        doubts.append(
            "all problems have the same value, so that the width over problems is that of "
            + ("as many single trials" if mean in (0.0, 1.0) else "sampling alone")
        )
    if least == 1:
        doubts.append(
            "one sample of a problem does not tell how much of the variance is the problems' and how much is "
            "sampling's; the interval over samples takes all of it for sampling's, the most that it can be"
        )
    return tuple(doubts)
