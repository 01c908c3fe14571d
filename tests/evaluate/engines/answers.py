"""Answers of an engine in the order of their requests, and probabilities computed without an engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ckptlin.evaluate.engines import Engine, Generation, Request
from ckptlin.evaluate.sampling import Sampling

__all__ = ["answers", "next_probabilities", "random_prompts"]


def answers(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int] = (1,)
) -> list[Generation]:
    found = [
        generation for part in engine.generate(requests, sampling, stop_ids=stop_ids) for generation in part
    ]
    assert sorted(generation.index for generation in found) == list(range(len(requests)))
    return sorted(found, key=lambda generation: generation.index)


def random_prompts(num_prompts: int, *, vocab_size: int = 48, lengths=(3, 40), seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(tuple(map(int, rng.integers(2, vocab_size, rng.integers(*lengths)))), seed=1000 + i)
        for i in range(num_prompts)
    ]


def next_probabilities(model: Path, ids: Sequence[int], sampling: Sampling) -> np.ndarray:
    """Probabilities of the next token, from logits of transformers and float64 arithmetic of our own."""
    import torch
    from transformers import AutoModelForCausalLM

    from ckptlin.quiet import quiet_transformers

    with quiet_transformers(), torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        logits = loaded(torch.tensor([list(ids)])).logits[0, -1].double().numpy()
    p = np.exp((logits - logits.max()) / sampling.temperature)
    order = np.argsort(-p)
    kept = order[: sampling.top_k or None]
    p_kept = p[kept] / p[kept].sum()
    # The likeliest until they have top_p together, the one that gets there included.
    kept = kept[: int((np.cumsum(p_kept) < sampling.top_p).sum()) + 1]
    result = np.zeros_like(p)
    result[kept] = p[kept] / p[kept].sum()
    return result
