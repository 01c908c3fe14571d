from dataclasses import replace
from pathlib import Path

import pytest

from ckptlin.rl.config import DataConfig, OptimizerConfig, RewardConfig, SamplingConfig, TrainConfig


@pytest.fixture(scope="session", autouse=True)
def trl():
    """Not here: nothing of TRL is called, and verl's environment has none."""


@pytest.fixture(scope="session")
def base_model(tiny_model) -> Path:
    return tiny_model


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
