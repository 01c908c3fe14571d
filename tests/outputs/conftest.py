"""Runs of small models whose log-probabilities differ from step to step, and responses to score."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import save_model_run

STEPS = (0, 100, 200, 300)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Four float32 checkpoints of a tied Qwen2, with its tokenizer of 32 letters."""
    root = tmp_path_factory.mktemp("outputs") / "run"
    return save_model_run(root, "qwen2", is_tied=True, steps=STEPS, dtype=torch.float32)


@pytest.fixture(scope="session")
def responses(tmp_path_factory) -> Path:
    """Twelve responses of all lengths to four prompts, as ids."""
    path = tmp_path_factory.mktemp("responses") / "responses.jsonl"
    rng = np.random.default_rng(0)
    rows = []
    for problem, length in enumerate((1, 3, 7, 12)):
        prompt = rng.integers(2, 32, length).tolist()
        for sample, size in enumerate(rng.permutation([1, 5, 20])):
            rows.append(
                {
                    "id": f"p{problem}",
                    "sample": sample,
                    "prompt_ids": prompt,
                    "token_ids": rng.integers(1, 32, size).tolist(),
                }
            )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
