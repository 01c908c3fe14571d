"""How long answers are, how many were cut off, and whether the correct ones are shorter."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptlin.evaluate.metrics.samples import checked_like, checked_scores

__all__ = ["Lengths", "lengths"]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Statistics of the answers' numbers of tokens, over all samples of all problems.

    Attributes
    ----------
    num_samples : int
    mean, lower_quartile, median, upper_quartile : float
        Tokens.
    longest : int
        Tokens.
    share_truncated : float or None
        Of the samples: those that were not finished.  None where that is not known.
    num_empty : int or None
        Answers without text.  None where that is not known.
    mean_correct, mean_wrong : float or None
        Mean tokens of samples with score 1, and of all others.  None where there is none.
    """

    num_samples: int
    mean: float
    lower_quartile: float
    median: float
    upper_quartile: float
    longest: int
    share_truncated: float | None
    num_empty: int | None
    mean_correct: float | None
    mean_wrong: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def lengths(
    num_tokens: Sequence[npt.ArrayLike],
    scores: Sequence[npt.ArrayLike],
    *,
    finished: Sequence[npt.ArrayLike] | None = None,
    empty: Sequence[npt.ArrayLike] | None = None,
) -> Lengths:
    """Return statistics of the answers' lengths.

    Parameters
    ----------
    num_tokens, scores : sequence of array_like
        ``(num_samples,)`` of each problem.
    finished, empty : sequence of array_like of bool, optional
        Whether each sample came to its end by itself; whether it has no text.

    Raises
    ------
    InputError
        If they are not of the same samples.

    Examples
    --------
    >>> found = lengths([[10, 30], [20]], [[1, 0], [1]], finished=[[True, False], [True]])
    >>> found.mean, found.longest, found.mean_correct, round(found.share_truncated, 3), found.num_empty
    (20.0, 30, 15.0, 0.333, None)
    """
    checked = checked_scores(scores)
    tokens = np.concatenate(checked_like(num_tokens, checked, name="num_tokens")).astype(np.float64)
    is_correct = np.concatenate(checked) == 1.0
    ended = None if finished is None else np.concatenate(checked_like(finished, checked, name="finished"))
    without_text = None if empty is None else np.concatenate(checked_like(empty, checked, name="empty"))
    lower, median, upper = np.quantile(tokens, [0.25, 0.5, 0.75]).tolist()
    return Lengths(
        num_samples=len(tokens),
        mean=float(tokens.mean()),
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        longest=int(tokens.max()),
        share_truncated=None if ended is None else float(1.0 - ended.astype(bool).mean()),
        num_empty=None if without_text is None else int(np.count_nonzero(without_text)),
        mean_correct=float(tokens[is_correct].mean()) if is_correct.any() else None,
        mean_wrong=float(tokens[~is_correct].mean()) if not is_correct.all() else None,
    )
