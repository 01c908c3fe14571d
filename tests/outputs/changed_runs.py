"""Copies of runs in which one checkpoint is another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["changed"]


def changed(run: Path, root: Path, change: Callable[[torch.Tensor], object]) -> Path:
    """Copy a run, and change the last norm of its step 100 in place."""
    shutil.copytree(run, root)
    path = root / "checkpoint-100/model.safetensors"
    weights = load_file(path)
    change(weights["model.norm.weight"])
    save_file(weights, path, metadata={"format": "pt"})
    return root
