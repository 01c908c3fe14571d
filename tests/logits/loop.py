"""Logits extrapolation as plainly as it can be said: two models in float64, no cache, no batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.logits.checkpoints import VOCABULARY

__all__ = ["TwoModels", "make_prompts"]


def make_prompts(count: int, *, seed: int = 5) -> list[list[int]]:
    """Return prompts of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (1 + row % 9,), generator=generator).tolist() for row in range(count)]


class TwoModels:
    """Two models in transformers, in float64 throughout unless told."""

    def __init__(self, base: Path, second: Path, *, dtype: torch.dtype = torch.float64) -> None:
        self.models = [
            AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval() for path in (base, second)
        ]

    def logits(self, ids: Sequence[int], alpha: float) -> torch.Tensor:
        """Return mixed logits at every position: ``(length, vocab_size) float64``."""
        with torch.inference_mode():
            first, last = (
                model(torch.tensor([list(ids)]), use_cache=False).logits[0].double() for model in self.models
            )
        return first + alpha * (last - first)

    def log_probs(self, ids: Sequence[int], alpha: float, *, temperature: float = 1.0) -> torch.Tensor:
        """Return log-probabilities of the next token at every position."""
        return torch.log_softmax(self.logits(ids, alpha) / temperature, dim=-1)

    def greedy(self, prompt: Sequence[int], written: Sequence[int], alpha: float) -> list[int]:
        """Return the likeliest token at each place of what was written.

        It is ``written`` itself if, and only if, each of its tokens was the likeliest after those before it:
        what a loop from token to token finds, by one forward.
        """
        ids = [*prompt, *written]
        return self.logits(ids, alpha)[len(prompt) - 1 : -1].argmax(-1).tolist()
