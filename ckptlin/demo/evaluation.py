"""How good a checkpoint is at sums that it has not seen: sampled, and computed.

The right answer to a sum is one text.  So pass@1 at temperature 1, which sampling estimates, can be computed
too: it is the mean probability of that text and its end, the product of its tokens' probabilities.  The two are
each other's witness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.demo.corpus import encode, longest_completion
from ckptlin.demo.isolation import undisturbed
from ckptlin.problems import Problem
from ckptlin.rl.config import DataConfig, RewardConfig, SamplingConfig, TrainConfig
from ckptlin.rl.engine import open_engine
from ckptlin.rl.guard import compare
from ckptlin.rl.sampled_rewards import SampledRewards

__all__ = ["Difference", "Evaluation", "answer_probabilities", "difference", "distance", "evaluate"]

_ROWS = 500


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on held-out problems.

    Attributes
    ----------
    sampled : SampledRewards
        Of answers at temperature 1: 1 for a right one, 0 otherwise.
    probabilities : numpy.ndarray
        ``(num_problems,) float64``, of the right answer.
    """

    sampled: SampledRewards
    probabilities: np.ndarray[Any, Any]

    @property
    def pass_at_1(self) -> float:
        """Share of right answers."""
        return float(self.sampled.rewards.mean())

    @property
    def standard_error(self) -> float:
        """Of `pass_at_1`, over problems, each the mean of its answers: answers to one problem are alike."""
        return _standard_error(self.sampled.rewards.mean(axis=1))

    @property
    def computed(self) -> float:
        """What `pass_at_1` estimates, without the noise of sampling."""
        return float(self.probabilities.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        num_problems, num_samples = self.sampled.rewards.shape
        return {
            "num_problems": num_problems,
            "num_samples": num_samples,
            "pass_at_1": self.pass_at_1,
            "standard_error": self.standard_error,
            "pass_at_1_computed": self.computed,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much one checkpoint is better than another on the same problems.

    Attributes
    ----------
    mean, standard_error : float
        Of the paired differences in the share of right answers, over problems.
    """

    mean: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than two standard errors."""
        return abs(self.mean) > 2 * self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"mean": self.mean, "standard_error": self.standard_error, "is_clear": self.is_clear}


def evaluate(checkpoint: Path, problems: Sequence[Problem], *, num_samples: int, seed: int) -> Evaluation:
    """Let a checkpoint answer sums at temperature 1, and compute what it would answer right.

    Parameters
    ----------
    checkpoint : Path
    problems : sequence of Problem
        Sums of one number of terms.
    num_samples : int
        Answers to each.
    seed : int
        Of the answers.  Checkpoints that are compared share it, which takes noise out of their differences.
    """
    num_terms = problems[0].problem.count("+") + 1
    config = TrainConfig(
        model=str(checkpoint),
        device="cpu",
        data=DataConfig("sums:test"),
        reward=RewardConfig("exact"),
        sampling=SamplingConfig(max_completion_tokens=longest_completion(num_terms)),
    )
    with undisturbed(seed):
        sampled = open_engine("trl").sample(config, checkpoint, problems, num_samples=num_samples, seed=seed)
        return Evaluation(sampled, answer_probabilities(checkpoint, problems))


def answer_probabilities(checkpoint: Path, problems: Sequence[Problem]) -> np.ndarray[Any, Any]:
    """Return the probability with which a checkpoint answers each sum right at temperature 1.

    Returns
    -------
    numpy.ndarray
        ``(num_problems,) float64``; logits are float32, the sums of their logarithms float64.
    """
    import torch

    from ckptlin.rl.trl.model import load_model, load_tokenizer

    encoded = encode(problems, load_tokenizer(checkpoint))
    model = load_model(checkpoint).eval()
    logs = []
    for start in range(0, len(encoded), _ROWS):
        ids = torch.from_numpy(encoded.input_ids[start : start + _ROWS])
        labels = torch.from_numpy(encoded.labels[start : start + _ROWS])[:, 1:]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        logs.append(-losses.double().sum(dim=1).numpy())
    probabilities: np.ndarray[Any, Any] = np.exp(np.concatenate(logs))
    return probabilities


def difference(better: Evaluation, than: Evaluation) -> Difference:
    """Compare two checkpoints on the same problems."""
    found = compare(than.sampled, better.sampled, z=0.0)
    return Difference(found.difference, found.standard_error)


def distance(first: Path, second: Path) -> float:
    """Euclidean distance of two checkpoints over all weights, summed in float64."""
    from safetensors.numpy import load_file

    ours, theirs = (load_file(checkpoint / "model.safetensors") for checkpoint in (first, second))
    squares = (
        np.square(ours[name].astype(np.float64) - theirs[name].astype(np.float64)).sum() for name in theirs
    )
    return float(np.sqrt(sum(squares)))


def _standard_error(values: np.ndarray[Any, Any]) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))
