"""How much each metric varies when the same problems are answered again: the variance by sampling alone.

A problem that was solved 0 or n times of n shows no variance, and most problems of a benchmark may be such;
with few others the plain estimate is as noisy as to make intervals too short.  So problems lend to each other:
their success probabilities are taken as draws from a Beta distribution that is fitted to all of them, and a
problem's variance is its expectation under the problem's own posterior (empirical Bayes).  Only the variance
is lent, the estimate itself is not shrunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.evaluate.metrics.majority import Ballot, majority_curve
from ckptlin.evaluate.metrics.pass_at_k import pass_at_k

__all__ = ["Beta", "fit_beta", "majority_variance", "mean_variance", "pass_at_k_variance"]

# Of a + b: a population more even than this is as good as homogeneous.
_MOST_EVEN = 1e4
_LEAST = 1e-9
# Pairs of redrawn elections of a problem.
_NUM_DRAWS = 256


@dataclass(frozen=True, slots=True)
class Beta:
    """A Beta distribution of success probabilities over problems, of mean a/(a + b)."""

    a: float
    b: float


def fit_beta(num_correct: npt.ArrayLike, num_samples: npt.ArrayLike) -> Beta:
    """Fit the distribution of the problems' success probabilities by its first two moments.

    The share κ = E[p(1−p)] / (m(1−m)) = (a+b)/(a+b+1) of the variance that lies within problems, from the
    unbiased estimates c(n−c)/(n(n−1)).  One problem that was solved once in n is added to the sum, lest a
    benchmark where each was solved always or never looks as if nothing varied.  Where no problem has two
    samples nothing can be told, and all of the variance is taken to lie within problems, which is the most
    there can be.

    Examples
    --------
    >>> even = fit_beta([2, 2, 2, 2], [4, 4, 4, 4])
    >>> split = fit_beta([0, 4, 0, 4], [4, 4, 4, 4])
    >>> even.a > 1000, round(split.a, 2)
    (True, 0.12)
    """
    c, n = np.broadcast_arrays(np.asarray(num_correct, np.float64), np.asarray(num_samples, np.float64))
    mean = float((c / n).mean())
    repeated = n >= 2
    within, total = 1.0, 1.0
    if repeated.any():
        c, n = c[repeated], n[repeated]
        one = float((1.0 / n).mean())
        within = float((c * (n - c) / (n * (n - 1.0))).sum()) + one
        total = len(n) * mean * (1.0 - mean) + one
    kappa = min(within / total, _MOST_EVEN / (_MOST_EVEN + 1.0))
    size = kappa / (1.0 - kappa)
    return Beta(max(size * mean, _LEAST), max(size * (1.0 - mean), _LEAST))


def pass_at_k_variance(num_correct: npt.ArrayLike, num_samples: npt.ArrayLike, k: int) -> np.ndarray[Any, Any]:
    """Return the variance of each problem's pass@k, were its n samples drawn anew.

    E[Var(f(c') | p)] with f the estimate, c' ~ Binomial(n, p), and p from the problem's posterior,
    Beta(a + c, b + n − c): E[f(c')²] over the beta-binomial distribution, less E[(1 − (1−p)^k)²], which is a
    matter of the Beta's moments since f is unbiased.

    Returns
    -------
    numpy.ndarray
        ``(num_problems,) float64``
    """
    c, n = np.broadcast_arrays(np.asarray(num_correct, np.int64), np.asarray(num_samples, np.int64))
    beta = fit_beta(c, n)
    result = np.zeros(len(c))
    for samples in np.unique(n).tolist():
        chosen = n == samples
        counts, back = np.unique(c[chosen], return_inverse=True)
        result[chosen] = _variance_of_counts(counts, samples, k, beta)[back]
    return result


def mean_variance(scores: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the variance of each problem's mean score, were its samples drawn anew.

    Where scores are 0 or 1 alone, that of pass@1.  Else s²/n of each problem, with the variance within problems
    of all others for those with a single sample, and one problem's smallest share, 1/n², added to the sum.
    """
    sizes = np.array([len(of_problem) for of_problem in scores])
    if all(((of_problem == 0.0) | (of_problem == 1.0)).all() for of_problem in scores):
        return pass_at_k_variance([int(of_problem.sum()) for of_problem in scores], sizes, 1)
    within = np.array([of_problem.var(ddof=1) if len(of_problem) > 1 else np.nan for of_problem in scores])
    if np.isnan(within).all():
        mean = float(np.mean([of_problem.mean() for of_problem in scores]))
        return np.full(len(scores), mean * (1.0 - mean))
    within[np.isnan(within)] = np.nanmean(within)
    return np.asarray(within / sizes + float((1.0 / sizes**2).mean()) / len(scores))


def majority_variance(
    votes: Sequence[Ballot], k: int, *, beta: Beta, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Return the variance of each problem's maj@k, were its samples drawn anew.

    For a k below n the jackknife: how the exact maj@k changes without one of the samples; ½k/n² is added to
    the sum of all problems.  For k = n there is nothing to leave out, and elections are drawn anew: p from the
    posterior as for pass@k, the wrong answers in proportion to those that were given.

    Parameters
    ----------
    votes : sequence of Ballot
    k : int
    beta : Beta
        Of the probabilities that a sample votes for a correct class.
    generator : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        ``(num_problems,) float64``
    """
    result = np.zeros(len(votes))
    for i, of_problem in enumerate(votes):
        n = sum(of_problem[0]) + sum(of_problem[1]) + of_problem[2]
        if k < n:
            result[i] = _jackknife(of_problem, n, k) + 0.5 * k / n**2 / len(votes)
        else:
            result[i] = _redrawn(of_problem, n, beta, generator)
    return result


def _variance_of_counts(counts: np.ndarray[Any, Any], n: int, k: int, beta: Beta) -> np.ndarray[Any, Any]:
    """Return E[Var(pass@k)] for each number of correct samples."""

    def rising(start: float) -> np.ndarray[Any, Any]:
        """Return log of Γ(start + r)/Γ(start) for r from 0."""
        return np.concatenate([[0.0], np.cumsum(np.log(start + np.arange(2 * n + k)))])

    log_a, log_b, log_ab = rising(beta.a), rising(beta.b), rising(beta.a + beta.b)
    new = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    together = counts[:, None] + new
    chance = np.exp(
        log_choose
        + (log_a[together] - log_a[counts][:, None])
        + (log_b[2 * n - together] - log_b[n - counts][:, None])
        - (log_ab[2 * n] - log_ab[n])
    )
    second = chance @ pass_at_k(new, n, k) ** 2

    def missed(power: int) -> np.ndarray[Any, Any]:
        """Return E[(1 − p)^power] under each posterior."""
        return np.asarray(
            np.exp(log_b[n - counts + power] - log_b[n - counts] - (log_ab[n + power] - log_ab[n]))
        )

    return np.asarray(np.maximum(second - (1.0 - 2.0 * missed(k) + missed(2 * k)), 0.0))


def _jackknife(votes: Ballot, n: int, k: int) -> float:
    """Return (n−1)/n·Σ_j (θ_(j) − θ̄)², the sum over the samples, each left out once."""
    right, wrong, num_abstaining = votes
    values, weights = [], []
    for kind, classes in enumerate((right, wrong)):
        for size in set(classes):
            left = list(classes)
            left.remove(size)
            if size > 1:
                left.append(size - 1)
            reduced = tuple(sorted(left))
            without = (reduced, wrong, num_abstaining) if kind == 0 else (right, reduced, num_abstaining)
            values.append(float(majority_curve(without)[k - 1]))
            weights.append(size * classes.count(size))
    if num_abstaining:
        values.append(float(majority_curve((right, wrong, num_abstaining - 1))[k - 1]))
        weights.append(num_abstaining)
    mean = np.average(values, weights=weights)
    return float((n - 1) / n * np.dot(weights, (np.array(values) - mean) ** 2))


def _redrawn(votes: Ballot, n: int, beta: Beta, generator: np.random.Generator) -> float:
    """Return half the mean square difference of two elections of n new votes with the same probabilities."""
    right, wrong, num_abstaining = votes
    num_right = sum(right)
    # A correct class that nobody chose may be chosen next time, and so may one wrong answer.
    of_right = np.array(right or (1,), np.float64)
    of_wrong = np.array((*wrong, num_abstaining) if num_right < n else (1, 0), np.float64)
    p = generator.beta(beta.a + num_right, beta.b + n - num_right, _NUM_DRAWS)[:, None]
    chances = np.hstack([p * (of_right / of_right.sum()), (1.0 - p) * (of_wrong / of_wrong.sum())])
    outcomes = []
    for _ in range(2):
        counts = generator.multinomial(n, chances)[:, :-1]
        top = counts.max(axis=1, keepdims=True)
        wins = (counts == top) & (top > 0)
        outcomes.append(wins[:, : len(of_right)].sum(axis=1) / np.maximum(wins.sum(axis=1), 1))
    return float(np.mean((outcomes[0] - outcomes[1]) ** 2) / 2.0)
