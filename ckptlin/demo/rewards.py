"""Whether the reward rose while a run was trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ckptlin.errors import InputError

__all__ = ["RewardRise", "measure_rise"]

_WINDOW = 50
_CLEAR = 3.0


@dataclass(frozen=True, slots=True)
class RewardRise:
    """Mean rewards of the first and the last steps of a run.

    Attributes
    ----------
    window : int
        Steps that each mean is taken over.
    first, last : float
    standard_error : float
        Of their difference, from the spread of the steps within each window, which a trend in it widens.
    """

    window: int
    first: float
    last: float
    standard_error: float

    @property
    def num_standard_errors(self) -> float:
        """The rise in standard errors; infinite where rewards have no spread, 0 where they are all the same."""
        rise = self.last - self.first
        if self.standard_error == 0:
            return float(np.copysign(np.inf, rise)) if rise else 0.0
        return rise / self.standard_error

    def verdict(self) -> list[str]:
        """Say whether the reward rose: by more than three standard errors, or not."""
        figures = f"from {self.first:.3f} over the first {self.window} steps to {self.last:.3f} over the last"
        noise = f"(± {self.standard_error:.3f})"
        if self.num_standard_errors > _CLEAR:
            return [f"The reward rose {figures} {self.window} {noise}."]
        if self.num_standard_errors < -_CLEAR:
            return [f"The reward fell {figures} {self.window} {noise}."]
        return [f"The reward went {figures} {self.window}, which is within the noise {noise}."]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


def measure_rise(rewards: Sequence[float], *, window: int = _WINDOW) -> RewardRise:
    """Compare the first steps of a run with the last; of a short run, its halves.

    Raises
    ------
    InputError
        If there are fewer than 4 steps.

    Examples
    --------
    >>> rise = measure_rise([0.1, 0.3, 0.5, 0.7], window=2)
    >>> round(rise.first, 3), round(rise.last, 3), round(rise.num_standard_errors, 3)
    (0.2, 0.6, 2.828)
    """
    window = min(window, len(rewards) // 2)
    if window < 2:
        raise InputError(
            f"{len(rewards)} steps are too few to compare the first with the last; give at least 4"
        )
    ends = np.array([rewards[:window], rewards[-window:]], np.float64)
    variance = ends.var(axis=1, ddof=1).sum() / window
    first, last = ends.mean(axis=1).tolist()
    return RewardRise(window, first, last, float(np.sqrt(variance)))
