"""Stores of made-up hidden states, without a model."""

from pathlib import Path

import numpy as np

from ckptlin.outputs.activation_store import ActivationStore, open_activation_writer
from ckptlin.outputs.states import pick_states
from ckptlin.outputs.token_store import TokenStep
from tests.outputs.token_steps import make_responses

__all__ = ["DIM", "LAYERS", "append_states", "expected_states", "make_state_store"]

LAYERS = ("embedding", "block 0", "norm")
DIM = 4
_SKETCH = {"seed": 0, "dim": DIM, "hidden": 8}


def expected_states(step: int, num_states: int) -> np.ndarray:
    """States that `append_states` writes."""
    return np.random.default_rng(step).random((len(LAYERS), num_states, DIM)).astype(np.float32)


def append_states(path: str, steps: list[int]) -> None:
    """Append the steps that are not there."""
    states = pick_states(make_responses(), num_tokens=100)
    with open_activation_writer(path, states, layers=LAYERS, sketch=_SKETCH) as writer:
        for step in steps:
            if writer.store.find(step) is None:
                values = expected_states(step, states.size)
                writer.append(TokenStep(step, f"run/{step}", f"f{step}", {}, {"engine": "hf"}, {}), values)


def make_state_store(path: Path, trajectories: np.ndarray, steps) -> ActivationStore:
    """Make a store of given trajectories, ``(num_steps, num_layers, num_states, dim)``."""
    num_layers, size, dim = trajectories.shape[1:]
    states = pick_states(make_responses((size,)), num_tokens=size)
    layers = [f"layer {n}" for n in range(num_layers)]
    sketch = {"seed": 0, "dim": dim, "hidden": 2 * dim}
    with open_activation_writer(path, states, layers=layers, sketch=sketch) as writer:
        for step, values in zip(steps, trajectories, strict=True):
            writer.append(TokenStep(step, "run", f"f{step}", {}, {}, {}), values.astype(np.float32))
        return writer.store
