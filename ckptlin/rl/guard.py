"""The guard of RL-Extra: was a jump worth it, by answers to held-out problems before and after it?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ckptlin.problems import Problem
from ckptlin.rl.engine import SampledRewards

__all__ = ["GuardVerdict", "choose_problems", "compare"]


@dataclass(frozen=True)
class GuardVerdict:
    """What held-out problems say of a jump.

    Attributes
    ----------
    before, after : float
        Mean rewards.
    difference, standard_error : float
        Of the paired difference after − before, over problems.
    z : float
        Limit: a loss of more standard errors than this undoes the jump.
    tokens : int
        Tokens that were generated to find out.
    """

    before: float
    after: float
    difference: float
    standard_error: float
    z: float
    tokens: int

    @property
    def undoes(self) -> bool:
        """Whether the jump lost more than the noise."""
        return self.difference < -self.z * self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"undoes": self.undoes}


def compare(before: SampledRewards, after: SampledRewards, *, z: float) -> GuardVerdict:
    """Compare rewards on the same problems.

    Each problem's mean over its samples is one observation, since answers to one problem are alike; the
    standard error is that of the mean of the paired differences.  Without any spread every loss counts.

    Examples
    --------
    >>> import numpy as np
    >>> worse = compare(SampledRewards(np.ones((4, 2)), 10), SampledRewards(np.zeros((4, 2)), 10), z=1.64)
    >>> worse.difference, worse.undoes
    (-1.0, True)
    """
    means = [sampled.rewards.mean(axis=1) for sampled in (before, after)]
    differences = means[1] - means[0]
    return GuardVerdict(
        before=float(means[0].mean()),
        after=float(means[1].mean()),
        difference=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(differences.size)),
        z=z,
        tokens=before.tokens + after.tokens,
    )


def choose_problems(problems: Sequence[Problem], count: int, *, seed: int) -> list[Problem]:
    """Choose the problems that a whole run is guarded by: the same for every jump, in their order."""
    if len(problems) <= count:
        return list(problems)
    chosen = np.sort(np.random.default_rng(seed).choice(len(problems), count, replace=False))
    return [problems[i] for i in chosen]
