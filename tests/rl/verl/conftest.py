from dataclasses import replace
from pathlib import Path

import pytest

from ckptlin.rl.config import DataConfig, OptimizerConfig, RewardConfig, SamplingConfig, TrainConfig


@pytest.fixture(scope="session")
def base_model(tmp_path_factory) -> Path:
    """A tiny model in float32 with the sums' tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from ckptlin.problems.sums import build_tokenizer

    path = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def make_config():
    """Make a configuration for verl; settings of sections replace those of the default ones."""

    def make(model="./base", **changes) -> TrainConfig:
        sections = {
            "data": DataConfig("sums:train", limit=20),
            "reward": RewardConfig("exact"),
            "sampling": SamplingConfig(rollouts=4, backend="vllm-colocate", max_completion_tokens=16),
            "optimizer": OptimizerConfig(lr=1e-3),
        }
        for section in sections:
            names = [name for name in changes if name.startswith(f"{section}__")]
            settings = {name.removeprefix(f"{section}__"): changes.pop(name) for name in names}
            sections[section] = replace(sections[section], **settings)
        shape = {"steps": 6, "batch": 4, "mini_batch": 2, "save_every": 2}
        return TrainConfig(model=str(model), engine="verl", **(sections | shape | changes))

    return make
