"""maj@k: the probability that a majority vote among k answers is correct, exactly, over all subsets of k.

Legend: n samples of a problem, class i has g_i of them, and those that abstain are a class that cannot win.  A
subset of size k is won with count t by class c if c has t members in it and no other class has more; with r
others that have t as well it wins with probability 1/(r + 1).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError

__all__ = ["ABSTAINS", "Ballot", "ballot", "majority_at_k", "majority_curve"]

# The class of a sample that gives no answer.
ABSTAINS = -1
_ROUNDING = 1e-12

# Votes for each correct class and for each wrong one, both sorted, and the number of samples that abstain.
Ballot = tuple[tuple[int, ...], tuple[int, ...], int]


def majority_at_k(votes: npt.ArrayLike, correct: npt.ArrayLike, k: int) -> float:
    """Return the probability that the plurality of k of a problem's samples is correct.

    The exact expectation over uniformly drawn subsets of k samples, and over ties, each of which is broken
    uniformly at random.  A class is correct if it contains a correct sample.  Samples that abstain have no
    vote; a subset in which all abstain is wrong.

    Parameters
    ----------
    votes : array_like of int
        ``(num_samples,)`` class of each sample's answer; −1 abstains.
    correct : array_like of bool
        ``(num_samples,)``
    k : int

    Raises
    ------
    InputError
        If k is less than 1 or more than the samples, or the shapes differ.

    Examples
    --------
    Of three answers two agree, and are right: one alone is right in two of three cases, a pair in 1/3 by
    agreement and in 2/3 · 1/2 by luck.

    >>> [round(majority_at_k([7, 7, 5], [True, True, False], k), 4) for k in (1, 2, 3)]
    [0.6667, 0.6667, 1.0]
    """
    found = ballot(votes, correct)
    n = sum(found[0]) + sum(found[1]) + found[2]
    if not 1 <= k <= n:
        raise InputError(f"maj@{k} needs a k from 1 to the number of samples, and a problem has {n}")
    return float(majority_curve(found)[k - 1])


def ballot(votes: npt.ArrayLike, correct: npt.ArrayLike) -> Ballot:
    """Count a problem's votes by class; the classes' own numbers play no part.

    Raises
    ------
    InputError
        If the shapes differ, or a class is below −1.
    """
    classes, is_correct = np.asarray(votes), np.asarray(correct, bool)
    if classes.ndim != 1 or classes.shape != is_correct.shape:
        raise InputError(
            "votes and correctness must be one for each sample, "
            f"not of shapes {classes.shape} and {is_correct.shape}"
        )
    if classes.size and classes.min() < ABSTAINS:
        raise InputError(
            f"a vote is a class from 0, or {ABSTAINS} where a sample abstains, not {classes.min()}"
        )
    votes_cast = classes != ABSTAINS
    names, counts = np.unique(classes[votes_cast], return_counts=True)
    right = np.isin(names, classes[votes_cast & is_correct])
    return (
        tuple(sorted(counts[right].tolist())),
        tuple(sorted(counts[~right].tolist())),
        int(np.count_nonzero(~votes_cast)),
    )


# The jackknife asks again for each k; 500 problems of 64 samples leave some 6,000 of 0.5 kB.
@lru_cache(maxsize=1 << 16)
def majority_curve(votes: Ballot) -> np.ndarray[Any, Any]:
    """Return maj@k of a problem for all k from 1 to n.

    For each correct class c and each count t with which it may win, the other classes' members in the subset
    are a product of polynomials, Σ_{j<t} C(g_i, j)·x^j + y·C(g_i, t)·x^t, where y marks a tie; the coefficient
    of x^(k−t)·y^r has the weight 1/(r + 1) = ∫₀¹ y^r dy, so that a Gauss-Legendre rule of enough nodes for the
    highest possible r takes the place of y, exactly.  Coefficients are kept relative to those of (1 + x)^(Σ
    g_i), which makes them probabilities: nothing overflows, and as no term is negative nothing cancels.

    Returns
    -------
    numpy.ndarray
        ``(n,) float64``, not writable.
    """
    right, wrong, num_abstaining = votes
    n = sum(right) + sum(wrong) + num_abstaining
    curve = np.zeros(n + 1)
    for index, own in enumerate(right):
        others = (*right[:index], *right[index + 1 :], *wrong)
        counts, nodes, weights = _rows(own, others)
        # Entry (row, s): probability that s samples, drawn from the classes so far, have no more than t of a
        # class, each class with t of them weighted by y.  Abstaining samples come first and bind nothing.
        held = np.zeros((len(counts), n + 1))
        held[:, : num_abstaining + 1] = 1.0
        drawn_from = num_abstaining
        for size in others:
            chance = _hypergeometric(drawn_from, size)
            drawn_from += size
            added = np.zeros_like(held)
            for j in range(min(size, int(counts.max())) + 1):
                factor = np.where(j < counts, 1.0, np.where(j == counts, nodes, 0.0))
                width = drawn_from - size + 1
                added[:, j : j + width] += factor[:, None] * chance[j, :width] * held[:, :width]
            held = added
        chance = _hypergeometric(drawn_from, own)
        for row, t in enumerate(counts.tolist()):
            width = drawn_from + 1
            curve[t : t + width] += weights[row] * chance[t, :width] * held[row, :width]
    # Certain but for rounding.
    result = np.where(curve[1:] > 1.0 - _ROUNDING, 1.0, curve[1:])
    result.flags.writeable = False
    return result


def _rows(own: int, others: Sequence[int]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the winning count, the node and the weight of each row: for each t, enough nodes for its ties."""
    counts, nodes, weights = [], [], []
    for t in range(1, own + 1):
        most_ties = sum(size >= t for size in others)
        x, w = _legendre(most_ties // 2 + 1)
        counts.append(np.full(len(x), t))
        nodes.append((x + 1.0) / 2.0)
        weights.append(w / 2.0)
    return np.concatenate(counts), np.concatenate(nodes), np.concatenate(weights)


@lru_cache(maxsize=256)
def _legendre(num_nodes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return nodes, weights


@lru_cache(maxsize=1 << 14)
def _hypergeometric(rest: int, size: int) -> np.ndarray[Any, Any]:
    """Return, at (j, s), the probability that of j + s samples j are of a class of ``size``, s of ``rest``."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, rest + size + 1)))])
    j, s = np.arange(size + 1)[:, None], np.arange(rest + 1)[None, :]
    logs = (
        log_factorial[size] - log_factorial[j] - log_factorial[size - j]
        + log_factorial[rest] - log_factorial[s] - log_factorial[rest - s]
        - log_factorial[rest + size] + log_factorial[j + s] + log_factorial[rest + size - j - s]
    )  # fmt: skip
    return np.asarray(np.exp(logs))
