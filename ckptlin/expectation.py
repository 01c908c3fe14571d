"""What to expect of a prediction, by what the same method would have been worth in the run's past."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.backtest import choose
from ckptlin.dtypes import TensorDType, from_numpy
from ckptlin.gram_matrices import GramMatrices
from ckptlin.kernels.weighted_sum import round_once
from ckptlin.methods import MethodSpec
from ckptlin.scores import MIN_ORIGIN, leading
from ckptlin.verdict import Verdict

__all__ = ["Expected", "expect"]

# Rounding is tried on this many predictions of the past, those that reached most nearly as far.
_NUM_TRIED = 16


@dataclass(frozen=True, slots=True)
class Expected:
    """The skill to expect of a checkpoint that a method predicted.

    Attributes
    ----------
    verdict : Verdict
        Of the method alone: what it was worth in predictions that reached about as far.
    rounding_ratio : float or None
        Squared error after rounding to the output's dtype over that before, in such predictions of sampled
        parameters; None without samples.
    """

    verdict: Verdict
    rounding_ratio: float | None

    @property
    def skill(self) -> float | None:
        """Mean skill, 1 − error²/‖w_h − w_last‖², before the prediction is rounded; None without a past."""
        return None if self.verdict.expected is None else self.verdict.expected.mean

    @property
    def skill_after_rounding(self) -> float | None:
        """The same of the prediction rounded to the output's dtype."""
        if self.skill is None or self.rounding_ratio is None:
            return None
        return 1.0 - (1.0 - self.skill) * self.rounding_ratio

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before the prediction is made."""
        found = self.verdict.expected
        if found is None:
            return ()
        past = f"from {found.num_origins} origin{'' if found.num_origins == 1 else 's'} of this run"
        if self.verdict.is_beyond_reach:
            return (
                f"step {self.verdict.target:.0f} is beyond reach: predictions {past} that reached as far were "
                f"no better than their last checkpoint (mean skill {found.mean:.2f} by "
                f"{self.verdict.method.short}), so evaluate this checkpoint before you use it",
            )
        if not self.verdict.is_tested:
            return (
                f"no prediction of this run's past reaches as far as step {self.verdict.target:.0f} "
                f"({self.verdict.reach:.1f} spans; the skill to expect is that of {found.reach:.1f} spans)",
            )
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = self.verdict.expected
        return {
            "skill": self.skill,
            "std": None if found is None or np.isnan(found.std) else found.std,
            "num_origins": 0 if found is None else found.num_origins,
            "in_predictions_of_reach": None if found is None else found.reach,
            "reach": self.verdict.reach,
            "ceiling": self.verdict.ceiling,
            "rounding_ratio": self.rounding_ratio,
            "skill_after_rounding": self.skill_after_rounding,
            "is_beyond_reach": self.verdict.is_beyond_reach,
            "is_tested": self.verdict.is_tested,
        }


def expect(
    grams: GramMatrices,
    spec: MethodSpec,
    target: int,
    *,
    dtype: TensorDType | None = None,
) -> Expected | None:
    """Say what to expect of a method at a target after the window's last step.

    Parameters
    ----------
    grams : GramMatrices
        Of the window.
    spec : MethodSpec
    target : int
    dtype : TensorDType, optional
        Of the output; default each tensor's own.

    Returns
    -------
    Expected or None
        None for a target that is not after the last step, of which the past of a run says nothing.
    """
    if target <= grams.steps[-1]:
        return None
    verdict = choose(grams, target, [spec])
    return Expected(verdict, _rounding_ratio(grams, spec, verdict.reach, dtype))


def _rounding_ratio(
    grams: GramMatrices, spec: MethodSpec, reach: float, dtype: TensorDType | None
) -> float | None:
    """Return Σ‖round(ŵ) − w_h‖² / Σ‖ŵ − w_h‖² over sampled parameters, each tensor by its size."""
    steps = np.array(grams.steps, np.float64)
    first = max(MIN_ORIGIN, spec.min_steps)
    pairs = [(n, row) for n in range(first, steps.size) for row in range(n, steps.size)]

    def distance(pair: tuple[int, int]) -> float:
        n, row = pair
        return abs(float(np.log((steps[row] - steps[0]) / (steps[n - 1] - steps[0]) / reach)))

    stack, pooled = grams.stack(), grams.total()
    before = after = 0.0
    for n, row in sorted(pairs, key=distance)[:_NUM_TRIED]:
        found = np.broadcast_to(leading(spec, steps, steps[row], stack, pooled, n), (len(stack), n))
        for name, coefficients in zip(grams.names, found, strict=True):
            sample = grams.samples.get(name)
            if sample is None or not sample.shape[1]:
                continue
            values, true = sample[:n].astype(np.float64), sample[row].astype(np.float64)
            # From the last checkpoint on, so that a parameter that never moved is predicted exactly.
            predicted = values[-1] + coefficients @ (values - values[-1])
            rounded = round_once(predicted, dtype or from_numpy(sample.dtype)).astype(np.float64)
            weight = grams.num_params[name] / sample.shape[1]
            before += weight * float(((predicted - true) ** 2).sum())
            after += weight * float(((rounded - true) ** 2).sum())
    return after / before if before > 0.0 else None
