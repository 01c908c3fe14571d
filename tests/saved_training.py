"""A run that was really trained: a tiny Llama on sequences with a rule, saved by transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["save_trained_run"]


def save_trained_run(
    root: Path, dtypes: Sequence[torch.dtype], *, num_checkpoints: int = 13, every: int = 4
) -> None:
    """Train once and save every checkpoint in each dtype, under ``root/<dtype>``.

    Post-training in miniature: Adam at a small learning rate, from a model that has learned the rule halfway.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    start = torch.randint(0, 24, (64, 1))
    stride = torch.randint(1, 6, (64, 1))
    sequences = (start + stride * torch.arange(12)) % 24

    def train(num_steps: int, lr: float) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        for _ in range(num_steps):
            batch = sequences[torch.randint(0, 64, (16,))]
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()

    train(60, 1e-2)
    for number in range(num_checkpoints):
        for dtype in dtypes:
            saved = LlamaForCausalLM(config)
            saved.load_state_dict(model.state_dict())
            name = str(dtype).removeprefix("torch.")
            saved.to(dtype).save_pretrained(root / name / f"checkpoint-{number * every}")
        train(every, 3e-4)
