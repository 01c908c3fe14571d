"""pass@k: the probability that at least one of k answers is correct, estimated without bias from n of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.errors import InputError

__all__ = ["pass_at_k"]


def pass_at_k(num_correct: npt.ArrayLike, num_samples: npt.ArrayLike, k: int) -> np.ndarray[Any, Any]:
    """Estimate pass@k of each problem.

    1 − C(n−c, k)/C(n, k), the share of the subsets of k samples that hold a correct one (Chen et al. 2021,
    arXiv 2107.03374, equation 1), as the product 1 − Π_{j<k} (n−c−j)/(n−j): no binomial coefficient is formed,
    and no factor leaves [0, 1].

    Parameters
    ----------
    num_correct, num_samples : array_like of int
        c and n of each problem, of one shape or broadcast.
    k : int
        At least 1.

    Returns
    -------
    numpy.ndarray
        float64.

    Raises
    ------
    InputError
        If k is less than 1 or more than a problem's samples, or a count makes no sense.

    Examples
    --------
    >>> pass_at_k([0, 1, 4], 4, 2).tolist()
    [0.0, 0.5, 1.0]
    """
    correct, samples = np.broadcast_arrays(
        np.asarray(num_correct, np.float64), np.asarray(num_samples, np.float64)
    )
    if k < 1:
        raise InputError(f"pass@k needs a k of at least 1, not {k}")
    if samples.size and k > (fewest := samples.min()):
        raise InputError(f"pass@{k} needs at least {k} samples of each problem, and one has {fewest:.0f}")
    if ((correct < 0) | (correct > samples)).any():
        raise InputError("the correct samples of a problem must number from 0 to all of its samples")
    wrong = samples - correct
    missed = np.ones(samples.shape)
    for j in range(k):
        missed *= np.maximum(wrong - j, 0.0) / (samples - j)
    return 1.0 - missed
