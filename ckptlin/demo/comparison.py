"""Predicted checkpoints beside those that were trained, and what that says in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptlin.demo.evaluation import Difference, Evaluation, difference

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Predictions of a step beside the checkpoint that was trained there, and the last one that they saw.

    Attributes
    ----------
    target, last_seen : int
        Steps.
    trained : dict of int to Evaluation
        Of checkpoints that were trained, step 0, the last seen and the target among them.
    predicted : dict of str to Evaluation
        By method.
    distance : dict of str to float
        ‖ŵ − w_target‖ by method.
    distance_last_seen : float
        ‖w_last_seen − w_target‖.
    """

    target: int
    last_seen: int
    trained: Mapping[int, Evaluation]
    predicted: Mapping[str, Evaluation]
    distance: Mapping[str, float]
    distance_last_seen: float

    @property
    def skill(self) -> dict[str, float]:
        """1 − ‖ŵ − w_target‖² / ‖w_last_seen − w_target‖² by method; 0 is no better than standing still."""
        return {method: 1 - (d / self.distance_last_seen) ** 2 for method, d in self.distance.items()}

    @property
    def by_training(self) -> Difference:
        """What training gained after the last seen step, up to the target."""
        return difference(self.trained[self.target], self.trained[self.last_seen])

    def gain(self, method: str) -> Difference:
        """Return what a prediction gains over the last checkpoint that it saw."""
        return difference(self.predicted[method], self.trained[self.last_seen])

    def lead(self, method: str) -> Difference:
        """Return what a prediction has over the checkpoint that was trained to the target."""
        return difference(self.predicted[method], self.trained[self.target])

    @property
    def best(self) -> str:
        """The method with the most right answers; of equals the one that is nearest in weights."""
        return max(self.predicted, key=lambda m: (self.predicted[m].pass_at_1, -self.distance[m]))

    def verdict(self) -> list[str]:
        """Say what training and the predictions were worth, good or bad; what is within the noise is so called.

        A difference counts if it is more than two standard errors.
        """
        last, target = self.last_seen, self.target
        whole = difference(self.trained[target], self.trained[0])
        lines = [
            f"Step {target} as trained solves {_relation(whole, 'step 0')}, where training began.",
            f"It solves {_relation(self.by_training, f'step {last}')}, the last that the predictions saw.",
        ]
        lines += [self._of_method(method) for method in self.predicted]
        skill = self.skill
        farther = [method for method, value in skill.items() if value <= 0]
        if farther:
            are = "is" if len(farther) == 1 else "are"
            lines.append(
                f"In weights {_listed(farther)} {are} farther from the trained step {target} than step {last}."
            )
        nearest = max(skill, key=lambda method: skill[method])
        if skill[nearest] > 0 and difference(self.predicted[self.best], self.predicted[nearest]).is_clear:
            lines.append(
                f"{nearest} is nearest in weights, but {self.best} solves more: the two are not the same."
            )
        return lines

    def _of_method(self, method: str) -> str:
        gain, lead = self.gain(method), self.lead(method)
        share, training = "", self.by_training
        if gain.is_clear and gain.mean > 0 and training.is_clear and training.mean > 0:
            share = f"{gain.mean / training.mean:.0%} of what training gains"
        return (
            f"{method} solves {_relation(gain, f'step {self.last_seen}', share)}, and "
            f"{_relation(lead, f'step {self.target} as trained')}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        skill = self.skill
        return {
            "target": self.target,
            "last_seen": self.last_seen,
            "trained": {str(step): evaluation.to_dict() for step, evaluation in self.trained.items()},
            "gained_by_training": self.by_training.to_dict(),
            "distance_last_seen": self.distance_last_seen,
            "methods": {
                method: {
                    **evaluation.to_dict(),
                    "gain_over_last_seen": self.gain(method).to_dict(),
                    "lead_over_trained": self.lead(method).to_dict(),
                    "distance": self.distance[method],
                    "skill": skill[method],
                }
                for method, evaluation in self.predicted.items()
            },
        }


def _relation(found: Difference, other: str, remark: str = "") -> str:
    """Say a difference to another checkpoint, in percentage points."""
    figures = f"{100 * found.mean:+.1f} ± {100 * found.standard_error:.1f} points".replace("-", "−")
    relation = ("more than" if found.mean > 0 else "fewer than") if found.is_clear else "as many as"
    remarks = [figures, *([] if found.is_clear else ["within the noise"]), *([remark] if remark else [])]
    return f"{relation} {other} ({', '.join(remarks)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
