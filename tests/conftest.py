import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import settings

from tests.forked import Forked

# The first call of a compiled function takes seconds, and no test asserts a time.
settings.register_profile("ckptlin", deadline=None, print_blob=True)
settings.load_profile("ckptlin")

MODEL = {
    "model.embed_tokens.weight": ((12, 4), ml_dtypes.bfloat16),
    "model.layers.0.mlp.experts.up_proj": ((3, 4, 5), ml_dtypes.bfloat16),
    "model.layers.0.mlp.up_proj.weight": ((4, 6), np.float32),
    "model.norm.weight": ((4,), np.float16),
    "model.scale": ((), np.float64),
    "model.nothing": ((0, 4), np.float32),
    "model.counts": ((3,), np.int64),
}
CONFIG = {"model_type": "tiny", "architectures": ["TinyForCausalLM"], "tie_word_embeddings": False}


def weights_at(step: int, model: Mapping[str, Any] = MODEL) -> dict[str, np.ndarray]:
    """The weights of a small model that drifts: the same for the same step, whoever asks."""
    weights = {}
    for name, (shape, dtype) in model.items():
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
        first = np.random.default_rng(seed).normal(0, 0.02, shape)
        drift = np.random.default_rng(seed + 1).normal(0, 1e-4, shape)
        noise = np.random.default_rng((seed, step)).normal(0, 1e-4, shape)
        values = np.asarray(first + step * drift + noise)
        weights[name] = (values * 1000 if np.dtype(dtype).kind in "iu" else values).astype(dtype)
    return weights


def save_checkpoint(
    directory: Path, weights: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = CONFIG
) -> Path:
    """Save a model as trainers do: weights in safetensors, and a config.json beside them."""
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """Make a run of checkpoints at some steps; further calls with the same name add to it."""

    def make(steps, name: str = "run", model: Mapping[str, Any] = MODEL, **kwargs: Any) -> Path:
        for step in steps:
            save_checkpoint(tmp_path / name / f"checkpoint-{step}", weights_at(step, model), **kwargs)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Processes that can be killed, or told to fail, at any of their operations on files."""
    with Forked() as forks:
        yield forks
