"""What comes of answers that were sampled without training on them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SampledRewards"]


@dataclass(frozen=True)
class SampledRewards:
    """Rewards of answers that were sampled without training on them.

    Attributes
    ----------
    rewards : numpy.ndarray
        ``(num_problems, num_samples) float64``.
    tokens : int
        Tokens generated for it.
    """

    rewards: np.ndarray[Any, Any]
    tokens: int
