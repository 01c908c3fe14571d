"""Stores of made-up hidden states, without a model."""

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from ckptlin.outputs.activation_store import ActivationStore, ActivationStoreWriter, open_activation_writer
from ckptlin.outputs.states import pick_states
from ckptlin.outputs.token_store import TokenStep
from tests.outputs.token_steps import make_responses

__all__ = [
    "DIM",
    "LAYERS",
    "SIZE",
    "append_states",
    "assert_holds",
    "expected_states",
    "make_state_store",
    "open_writer",
]

LAYERS = ("embedding", "block 0", "norm")
DIM = 4
_SKETCH = {"seed": 0, "dim": DIM, "hidden": 8}
_STATES = pick_states(make_responses(), num_tokens=100)
SIZE = _STATES.size


def expected_states(step: int, num_states: int) -> np.ndarray:
    """States that `append_states` writes."""
    return np.random.default_rng(step).random((len(LAYERS), num_states, DIM)).astype(np.float32)


def open_writer(path: str | Path) -> AbstractContextManager[ActivationStoreWriter]:
    """Open a store of all states of `make_responses`."""
    return open_activation_writer(path, _STATES, layers=LAYERS, sketch=_SKETCH)


def append_states(path: str | Path, steps: list[int]) -> None:
    """Append the steps that are not there."""
    with open_writer(path) as writer:
        for step in steps:
            if writer.store.find(step) is None:
                values = expected_states(step, SIZE)
                writer.append(TokenStep(step, f"run/{step}", f"f{step}", {}, {"engine": "hf"}, {}), values)


def assert_holds(store: ActivationStore, steps: list[int]) -> None:
    """Expect the steps of `append_states`."""
    assert store.steps == tuple(sorted(steps))
    for layer in range(len(LAYERS)):
        expected = [expected_states(step, SIZE)[layer] for step in store.steps]
        np.testing.assert_array_equal(
            store.read_states(layer, store.steps), np.array(expected, np.float32).reshape(-1, SIZE, DIM)
        )


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
