"""A tiny language model that is really trained, by AdamW, and its checkpoints in float32 and bfloat16."""

from collections.abc import Sequence
from functools import cache

import ml_dtypes
import numpy as np
import torch

__all__ = ["STEPS", "trained"]

STEPS = tuple(range(0, 110, 10))


@cache
def trained(dtype: str) -> dict[str, np.ndarray]:
    """Return the trajectory ``(len(STEPS), ...)`` of each tensor of a Qwen2 that learns to count."""
    if dtype == "bfloat16":
        return {name: weights.astype(ml_dtypes.bfloat16) for name, weights in trained("float32").items()}
    return {name: np.stack(rows) for name, rows in _train(STEPS).items()}


def _train(steps: Sequence[int]) -> dict[str, list[np.ndarray]]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows: dict[str, list[np.ndarray]] = {name: [] for name, _ in model.named_parameters()}
    for step in range(steps[-1] + 1):
        if step in steps:
            for name, parameter in model.named_parameters():
                rows[name].append(parameter.detach().numpy().copy())
        start = torch.randint(0, 32, (8, 1))
        tokens = (start + torch.arange(12)) % 32
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows
