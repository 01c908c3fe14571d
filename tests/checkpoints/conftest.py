import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

SHARD_BYTES = "1KB"


def make_model(*, is_tied: bool, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=is_tied,
    )
    return Qwen2ForCausalLM(config).to(dtype)


@pytest.fixture
def new_model() -> Callable[..., Qwen2ForCausalLM]:
    return make_model


@pytest.fixture(scope="session")
def _saved(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    for name, is_tied in (("tied", True), ("untied", False)):
        model = make_model(is_tied=is_tied)
        model.save_pretrained(root / name)
        model.save_pretrained(root / f"{name}-sharded", max_shard_size=SHARD_BYTES)
    return root


@pytest.fixture
def saved(_saved, tmp_path) -> Callable[..., Path]:
    """Give a copy of a checkpoint saved by transformers: ``tied``, ``untied``, or either ``-sharded``."""

    def copy(kind: str, to: str | None = None) -> Path:
        target = tmp_path / (to or kind)
        shutil.copytree(_saved / kind, target)
        return target

    return copy


@pytest.fixture
def save_tensors(tmp_path) -> Callable[..., Path]:
    """Save tensors to ``tmp_path / path`` with the safetensors library."""

    def save(
        path: str, tensors: Mapping[str, Any] | None = None, metadata: dict[str, str] | None = None
    ) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if tensors is None:
            tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
        as_torch = {name: torch.as_tensor(value) for name, value in tensors.items()}
        safetensors.torch.save_file(as_torch, file, metadata=metadata)
        return file

    return save
