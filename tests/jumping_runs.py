"""A run that alternates training with extrapolation, made with transformers and ckptlin's own prediction."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ckptlin.extrapolate import extrapolate
from ckptlin.segments import TRAIN_RECORD_NAME, Jump
from ckptlin.source import open_source

__all__ = ["jump", "train", "write_jumps"]


def train(run: Path, steps: Sequence[int]) -> None:
    """Save checkpoints of a Qwen2 model at steps, from the run's last checkpoint on, or a new model's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(steps[0])
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if last is not None:
        model = Qwen2ForCausalLM.from_pretrained(last)
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=16,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                tie_word_embeddings=False,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(16, (4, 8))
    for step in steps:
        if last is not None or step != steps[0]:
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(run / f"checkpoint-{step}")


def jump(run: Path, to_step: int, method: str = "two-point") -> Jump:
    """Predict a checkpoint from the run's last segment; record the jump before the checkpoint appears."""
    with_all = open_source(run)
    made = Jump(with_all.steps[-1], to_step, method)
    record = json.loads((run / TRAIN_RECORD_NAME).read_text()) if with_all.jumps else {"jumps": []}
    write_jumps(run, [*record["jumps"], {**made.to_dict(), "window": list(with_all.steps)}])
    out = run / f"checkpoint-{to_step}"
    extrapolate(with_all, to_step, out, method=method, segment="last", num_workers=1)
    return made


def write_jumps(run: Path, jumps: Sequence[Any]) -> None:
    """Write what a trainer says of its jumps."""
    (run / TRAIN_RECORD_NAME).write_text(json.dumps({"created_by": "a trainer", "jumps": list(jumps)}))
