"""Tiny runs whose weights are the same for the same step, and what a store holds of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from ckptlin.fit import fit
from ckptlin.gram import gram
from ckptlin.store.store import TrajectoryStore

__all__ = [
    "CONFIG",
    "MODEL",
    "assert_holds",
    "file_contents",
    "fit_store",
    "gram_store",
    "save_checkpoint",
    "stored_bits",
    "weights_at",
]

# Two dimensions and more, one, none, and a tensor without elements; wide and narrow, floats and integers.
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
    """Return the weights of a small model that drifts."""
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


def fit_store(path: str) -> None:
    """Fit a store that is named by its path."""
    fit(TrajectoryStore(path), num_workers=1)


def gram_store(path: str) -> None:
    """Compute the Gram matrices of a store that is named by its path."""
    gram(TrajectoryStore(path), num_workers=1)


def stored_bits(store: TrajectoryStore, tensor: str) -> np.ndarray:
    """Return a tensor's trajectory as the store has it, ``(num_steps, *shape)`` of the bits dtype."""
    spec = store.tensors[tensor]
    bits = np.empty((len(store.steps), spec.num_params), spec.dtype.bits)
    for block in store.blocks(tensor):
        bits[:, block.start : block.stop] = store.read_block(block, range(len(store.steps)))
    return bits.reshape(len(store.steps), *spec.shape)


def assert_holds(store: TrajectoryStore, by_step: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Assert that a store holds these weights bit for bit, and nothing else."""
    assert store.steps == tuple(sorted(by_step))
    assert all(set(weights) == set(store.tensors) for weights in by_step.values())
    for name, spec in store.tensors.items():
        expected = np.stack([by_step[step][name] for step in store.steps])
        assert expected.dtype == spec.dtype.numpy
        np.testing.assert_array_equal(
            stored_bits(store, name), np.ascontiguousarray(expected).view(spec.dtype.bits), err_msg=name
        )


def file_contents(root: Path) -> dict[str, bytes]:
    """Return every file below a directory, by its relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
