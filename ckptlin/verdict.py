"""Which method to trust for a target, by what a run's own past says.

Owns the judgement of one target from `ckptlin.scores.Scores`; the tables over all horizons are in
`ckptlin.backtest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ckptlin.methods import MethodSpec
from ckptlin.scores import Scores

__all__ = ["Expectation", "Verdict", "judge", "pick"]

# How alike the reach of past predictions has to be to the target's: standard deviation of its logarithm.
_WIDTH = 0.25
# A prediction may be worse than any bound; one that is twice as bad as this teaches nothing more.
_WORST = -1.0
# What is trusted where the past says little: the first of these that is asked about.  On 34 small real runs no
# other method had less than 97% of kriging's squared error (docs/methods.md).
_DEFAULTS = ("kriging", "damped")
# What another method's lead over it has to exceed, and the effective number of origins that it has to show in.
# Tried on runs of GRPO and of supervised training: one standard error and two origins cost .01 of skill, and of
# what does not, these switch soonest where another method is right.
_STANDARD_ERRORS, _MIN_ORIGINS = 1.5, 3.0
# A target this much further than any prediction of the past is not judged by it.
_UNTESTED = 1.25


class Expectation(NamedTuple):
    """Skill that a method showed in predictions of the past that reached about as far.

    Attributes
    ----------
    mean, std : float
        Over origins, the later ones and those with predictions of about the target's reach counting more; std
        is NaN with one.
    num_origins : int
    reach : float
        Of the predictions that it rests on, in spans observed, their geometric mean.
    """

    mean: float
    std: float
    num_origins: int
    reach: float


@dataclass(frozen=True)
class Verdict:
    """The method to use for a target, and what to expect of it.

    Attributes
    ----------
    method : MethodSpec
    target : float
    reach : float
        (target − s_1)/(s_T − s_1).
    expected : Expectation or None
        None where the window holds no past to judge by.
    ceiling : float or None
        Skill of a prediction that is right up to the rounding of the checkpoints, at that reach.
    is_beyond_reach : bool
        Whether no method is expected to beat the last checkpoint there.
    is_tested : bool
        Whether the window holds predictions that reached about as far.
    reason : str
        A sentence.
    """

    method: MethodSpec
    target: float
    reach: float
    expected: Expectation | None
    ceiling: float | None
    is_beyond_reach: bool
    is_tested: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return {
            "method": str(self.method),
            "target": self.target,
            "reach": self.reach,
            "expected_skill": None if self.expected is None else self.expected._asdict(),
            "ceiling": self.ceiling,
            "is_beyond_reach": self.is_beyond_reach,
            "is_tested": self.is_tested,
            "reason": self.reason,
        }


def pick(scores: Scores, methods: Sequence[MethodSpec], reach: float, num_steps: int | None = None) -> int:
    """Return the index of the method to trust for a reach, by the first ``num_steps`` checkpoints alone.

    The default (``kriging``, else ``damped``, where it is among the methods, or the first) unless another has
    shown more skill in predictions of about that reach, by more than 1.5 standard errors over at least three
    origins.
    """
    default = _default(methods)
    past = _Past.of(scores, methods, reach, num_steps)
    gains = past.skills - past.skills[:, [default]]
    means, deviations, counts = past.over_origins(gains)
    with np.errstate(divide="ignore", invalid="ignore"):
        assured = means - _STANDARD_ERRORS * deviations / np.sqrt(counts)
    assured[~(counts >= _MIN_ORIGINS) | np.isnan(assured)] = -np.inf
    assured[default] = 0.0
    return int(np.argmax(assured))


def judge(scores: Scores | None, methods: Sequence[MethodSpec], steps: Sequence[int], target: float) -> Verdict:
    """Choose a method for a target after the last of the steps, and say what to expect of it.

    ``scores`` is None where there are too few checkpoints for a past.
    """
    reach = (target - steps[0]) / (steps[-1] - steps[0]) if len(steps) > 1 else np.inf
    default = methods[_default(methods)]
    if scores is None or not (scores.moves > 0.0).any():
        why = f"{len(steps)} checkpoints hold no past to judge by" if scores is None else "nothing ever moved"
        reason = f"{why}; {default.short} is used without"
        return Verdict(default, target, reach, None, None, False, False, reason)
    chosen = pick(scores, methods, reach)
    past = _Past.of(scores, methods, reach)
    mean, deviation = (values[chosen] for values in past.over_origins(past.skills)[:2])
    expected = None
    if not np.isnan(mean):
        num_origins = int((~np.isnan(past.skills[:, chosen])).sum())
        expected = Expectation(float(mean), float(deviation), num_origins, past.reach)
    is_tested = reach <= _UNTESTED * float(scores.reach.max())
    return Verdict(
        method=methods[chosen],
        target=target,
        reach=reach,
        expected=expected,
        ceiling=past.ceiling,
        is_beyond_reach=expected is not None and not expected.mean > 0.0,
        is_tested=is_tested,
        reason=_reason(methods[chosen], default, expected, is_tested),
    )


def _default(methods: Sequence[MethodSpec]) -> int:
    names = [method.name for method in methods]
    return next((names.index(name) for name in _DEFAULTS if name in names), 0)


class _Past(NamedTuple):
    """Skills that methods showed in a run's past, and how much each origin counts for a reach.

    ``skills`` is ``(num_origins, num_methods) float64``, NaN where a method needs more checkpoints; ``weights``
    ``(num_origins,)``; ``reach`` the geometric mean of what the predictions reached, ``ceiling`` their mean.
    """

    skills: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]
    reach: float
    ceiling: float | None

    @classmethod
    def of(
        cls, scores: Scores, methods: Sequence[MethodSpec], reach: float, num_steps: int | None = None
    ) -> "_Past":
        known = ~np.isnan(scores.ceiling()) & scores.up_to(num_steps or len(scores.steps))
        if not known.any():
            return cls(np.zeros((0, len(methods))), np.zeros(0), np.nan, None)
        logs = np.log(scores.reach[known])
        # Beyond all that was tried, the furthest of it counts.
        wanted = np.clip(np.log(max(reach, 1.0)), logs.min(), logs.max())
        weights = np.exp(-0.5 * ((logs - wanted) / _WIDTH) ** 2)
        origins, row = np.unique(scores.origins[known], return_inverse=True)
        of_origin = (row == np.arange(origins.size)[:, None]) * weights
        share = of_origin / of_origin.sum(axis=1, keepdims=True)
        skills = np.stack([scores.skill(method.short)[known] for method in methods], axis=-1)
        return cls(
            share @ np.maximum(skills, _WORST),
            # Later origins saw nearly as much as the whole window, and count in proportion to their rank.
            of_origin.max(axis=1) * np.arange(1, origins.size + 1),
            float(np.exp(weights @ logs / weights.sum())),
            float(weights @ scores.ceiling()[known] / weights.sum()),
        )

    def over_origins(
        self, values: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return weighted mean, standard deviation and effective number of origins, ``(num_methods,)`` each.

        NaN are left out; the deviation is NaN where fewer than two origins are left.
        """
        weights = np.where(np.isnan(values), 0.0, self.weights[:, None])
        total = weights.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.nansum(weights * values, axis=0) / total
            count = total**2 / (weights**2).sum(axis=0)
            spread = np.nansum(weights * (values - mean) ** 2, axis=0) / total
            deviation = np.sqrt(spread * np.where(count > 1.0 + 1e-9, count / (count - 1.0), np.nan))
        return mean, deviation, count


def _reason(method: MethodSpec, default: MethodSpec, expected: Expectation | None, is_tested: bool) -> str:
    if expected is None:
        return f"the run's past says nothing of predictions that far; {method.short} is used without"
    origins = f"{expected.num_origins} origin" + ("" if expected.num_origins == 1 else "s")
    judged = f"in predictions from {origins} that reached {expected.reach:.2f} spans on average"
    if method == default:
        why = f"{method.short} had a mean skill of {expected.mean:.2f}, and nothing was clearly better"
    else:
        why = f"{method.short} had a mean skill of {expected.mean:.2f}, clearly more than {default.short}"
    further = "" if is_tested else "; none of them reached as far as the target"
    return f"{judged}, {why}{further}"
