"""A run that gets better: the demo's model, and what it was before noise was taken from its weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptlin.demo import base_model

STEPS = (0, 10, 20, 30)


def save_noisy_base(directory: Path, scale: float, *, seed: int = 0) -> Path:
    """Save the demo's model with noise of ``scale`` times each tensor's standard deviation."""
    shutil.copytree(base_model(), directory)
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=generator) * tensor.std()
        weights[name] = tensor + scale * noise
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def noisy_run(tmp_path_factory) -> Path:
    """Checkpoints 0 to 30: on a line to the demo's model, which is the last."""
    run = tmp_path_factory.mktemp("noisy") / "run"
    for step in STEPS:
        save_noisy_base(run / f"checkpoint-{step}", 0.3 * (1 - step / STEPS[-1]))
    return run
