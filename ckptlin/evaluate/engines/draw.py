"""How the engine of transformers draws tokens: each answer by random numbers of its own.

``generate`` of transformers draws all rows of a batch from one stream, so that an answer would depend on its
neighbours.  Here each row has a generator.  The token is the argmax of p/q, where p are the probabilities left
by temperature, top-k and top-p, and q exponential random numbers: an exact draw from p, since the smallest of
exponential variables with rates p is the k-th with probability p_k.  So ``generate`` decodes greedily what
`Draw` returns.  Two models that are close draw the same token for most seeds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from ckptlin.evaluate.sampling import Sampling

__all__ = ["Draw"]


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Turn logits into scores whose argmax is a draw; make one for each batch.

    Parameters
    ----------
    sampling : Sampling
        Not a greedy one.
    seeds : sequence of int
        One for each row.
    stop_ids : sequence of int
        A row that has ended in one of them draws no more.
    device : torch.device
        Where the logits are.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[int], *, stop_ids: Sequence[int], device: torch.device
    ) -> None:
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self._warpers: list[Any] = []
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._stop_ids = torch.tensor(list(stop_ids), device=device)
        self._is_ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        self._has_begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores ``(num_rows, vocab_size) float32`` for the logits of the next token."""
        if self._has_begun:
            self._is_ended |= torch.isin(input_ids[:, -1], self._stop_ids)
        self._has_begun = True
        scores = scores.float()
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        probabilities = scores.softmax(dim=-1)
        noise = torch.ones_like(probabilities)
        for row in (~self._is_ended).nonzero().flatten().tolist():
            noise[row].exponential_(generator=self._generators[row])
        # A token that is out has probability 0, and must not become 0/0.
        drawn: torch.Tensor = probabilities / noise.clamp_min_(torch.finfo(noise.dtype).tiny)
        return drawn
