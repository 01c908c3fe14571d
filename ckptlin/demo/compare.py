"""How good a predicted checkpoint is: its loss on held-out problems, its distance to what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.demo.corpus import EncodedProblems
from ckptlin.problems import Problem
from ckptlin.problems.sums import END

__all__ = ["Comparison", "Generation", "Score", "distance", "generate", "score", "verdict"]

_BATCH = 250


@dataclass(frozen=True, slots=True)
class Score:
    """A model on held-out problems.

    Attributes
    ----------
    loss : float
        Mean negative log-likelihood of an answer's token, in nats.
    exact : float
        Share of problems whose answer greedy decoding writes without a mistake.
    """

    loss: float
    exact: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures as plain data."""
        return {"loss": self.loss, "exact": self.exact}


@dataclass(frozen=True)
class Comparison:
    """Predictions of a step beside the checkpoint that was trained there, and the last one that they saw.

    Attributes
    ----------
    target, last_seen : int
        Steps.
    run : dict of int to Score
        Of every checkpoint that was trained.
    predicted : dict of str to Score
        By method.
    distance : dict of str to float
        ‖ŵ − w_target‖ by method.
    distance_last_seen : float
        ‖w_last_seen − w_target‖.
    """

    target: int
    last_seen: int
    run: Mapping[int, Score]
    predicted: Mapping[str, Score]
    distance: Mapping[str, float]
    distance_last_seen: float

    @property
    def skill(self) -> dict[str, float]:
        """1 − ‖ŵ − w_target‖² / ‖w_last_seen − w_target‖² by method; 0 is no better than standing still."""
        return {method: 1 - (d / self.distance_last_seen) ** 2 for method, d in self.distance.items()}

    @property
    def gained(self) -> dict[str, float | None]:
        """How much of the loss that training took off after the last seen step a method takes off too.

        None where training took nothing off.
        """
        last, trained = self.run[self.last_seen].loss, self.run[self.target].loss
        if trained >= last:
            return dict.fromkeys(self.predicted)
        return {m: (last - predicted.loss) / (last - trained) for m, predicted in self.predicted.items()}

    @property
    def best(self) -> str:
        """The method with the lowest loss."""
        return min(self.predicted, key=lambda method: self.predicted[method].loss)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        skill, gained = self.skill, self.gained
        return {
            "target": self.target,
            "last_seen": self.last_seen,
            "run": {str(step): s.to_dict() for step, s in self.run.items()},
            "distance_last_seen": self.distance_last_seen,
            "methods": {
                method: {
                    **s.to_dict(),
                    "distance": self.distance[method],
                    "skill": skill[method],
                    "share_of_loss_gained": gained[method],
                }
                for method, s in self.predicted.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model wrote to a prompt."""

    prompt: str
    text: str
    expected: str

    @property
    def is_right(self) -> bool:
        """Whether it is the whole answer."""
        return self.text == self.expected

    def to_dict(self) -> dict[str, str | bool]:
        """Return it as plain data."""
        return {"prompt": self.prompt, "text": self.text, "expected": self.expected, "is_right": self.is_right}


def score(checkpoint: Path, problems: EncodedProblems) -> Score:
    """Load a checkpoint with transformers, and score it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    total = num_tokens = num_exact = 0.0
    for start in range(0, len(problems), _BATCH):
        ids = torch.from_numpy(problems.input_ids[start : start + _BATCH])
        labels = torch.from_numpy(problems.labels[start : start + _BATCH])[:, 1:]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        scored = labels >= 0
        total += float(losses.double().sum())
        num_tokens += int(scored.sum())
        # Given the right tokens so far, every next one is right: that is what greedy decoding would write.
        num_exact += int(((logits.argmax(-1) == labels) | ~scored).all(dim=1).sum())
    return Score(loss=total / num_tokens, exact=num_exact / len(problems))


def distance(first: Path, second: Path) -> float:
    """Euclidean distance of two checkpoints over all weights, summed in float64."""
    from safetensors.numpy import load_file

    ours, theirs = (load_file(checkpoint / "model.safetensors") for checkpoint in (first, second))
    squares = (
        np.square(ours[name].astype(np.float64) - theirs[name].astype(np.float64)).sum() for name in theirs
    )
    return float(np.sqrt(sum(squares)))


def generate(checkpoint: Path, problems: Sequence[Problem]) -> tuple[Generation, ...]:
    """Load a checkpoint and its tokenizer with transformers, and let it work out problems greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    generations = []
    for problem in problems:
        expected = f"{problem.answer}{END}"
        inputs = torch.tensor([tokenizer(problem.problem)["input_ids"]])
        with torch.inference_mode():
            written = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=len(expected) + 4,
                do_sample=False,
            )
        text: str = tokenizer.decode(written[0, inputs.shape[1] :])
        generations.append(Generation(problem.problem, text, expected))
    return tuple(generations)


def verdict(comparison: Comparison) -> list[str]:
    """Say in plain words what the extrapolations were worth, good or bad."""
    last, trained = comparison.run[comparison.last_seen], comparison.run[comparison.target]
    better = [m for m, s in comparison.predicted.items() if s.loss < last.loss]
    worse = [m for m in comparison.predicted if m not in better]
    if not better:
        lines = [f"No extrapolation has a lower loss than step {comparison.last_seen}, the last that it saw."]
    elif not worse:
        lines = [
            f"Every extrapolation has a lower loss than step {comparison.last_seen}, the last that it saw."
        ]
    else:
        lines = [
            f"{_listed(better)} {_have(better)} a lower loss than step {comparison.last_seen}, the last seen; "
            f"{_listed(worse)} {_have(worse)} not."
        ]
    best = comparison.best
    gained = comparison.gained[best]
    if gained is None:
        lines.append(f"Training itself gained nothing from step {comparison.last_seen} to {comparison.target}.")
    elif gained > 1:
        lines.append(f"{best} is even below step {comparison.target} as it was trained.")
    elif gained > 0:
        steps = comparison.target - comparison.last_seen
        lines.append(
            f"The best, {best}, gains {gained:.0%} of what {steps} steps of training gain, without training; "
            f"step {comparison.target} as trained is better still."
        )
    nearer = [m for m, s in comparison.skill.items() if s > 0]
    if len(nearer) < len(comparison.skill):
        farther = [m for m in comparison.skill if m not in nearer]
        lines.append(
            f"In weights {_listed(farther)} {'is' if len(farther) == 1 else 'are'} farther from the trained "
            f"step {comparison.target} than step {comparison.last_seen} is."
        )
    drop = [m for m in better if comparison.predicted[m].exact < last.exact]
    if drop:
        lines.append(f"But {_listed(drop)} {'gets' if len(drop) == 1 else 'get'} fewer answers wholly right.")
    if trained.exact < last.exact:
        lines.append(
            f"Step {comparison.target} as trained gets fewer answers right than step {comparison.last_seen}."
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
