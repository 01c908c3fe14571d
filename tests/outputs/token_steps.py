"""Stores of made-up log-probabilities, without a model."""

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from ckptlin.outputs.responses import Responses
from ckptlin.outputs.scorers import Probe
from ckptlin.outputs.token_store import TokenStep, TokenStore, TokenStoreWriter, open_token_writer

__all__ = ["append_steps", "assert_holds", "expected", "make_responses", "make_store", "open_writer"]

_LENGTHS = (3, 1, 4, 2)


def make_responses(lengths=_LENGTHS, *, seed: int = 0) -> Responses:
    """Two responses to each prompt."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 9, 3).astype(np.int32) for _ in lengths]
    probes = tuple(
        Probe(prompts[index // 2], rng.integers(0, 9, length).astype(np.int32))
        for index, length in enumerate(lengths)
    )
    names = tuple((f"p{index // 2}", index % 2) for index in range(len(lengths)))
    return Responses(probes, names, tokenized_here=False)


def expected(step: int, num_tokens: int) -> np.ndarray:
    """Log-probabilities that `append_steps` writes."""
    return -np.random.default_rng(step).random(num_tokens).astype(np.float32)


def open_writer(path: str | Path, lengths=_LENGTHS) -> AbstractContextManager[TokenStoreWriter]:
    """Open a store of `make_responses`."""
    texts = {n: str(n) for n in range(9)}
    return open_token_writer(path, make_responses(lengths), tokenizer="t", texts=texts)


def append_steps(path: str | Path, steps: list[int]) -> None:
    """Append the steps that are not there."""
    with open_writer(path) as writer:
        for step in steps:
            if writer.store.find(step) is None:
                values = expected(step, sum(_LENGTHS))
                writer.append(
                    TokenStep(step, f"run/{step}", f"f{step}", {}, {"engine": "hf"}, {}), values, -values
                )


def assert_holds(store: TokenStore, steps: list[int]) -> None:
    """Expect the steps of `append_steps`, in this order, and the entropy of the first."""
    assert store.steps == tuple(sorted(steps))
    for step in steps:
        np.testing.assert_array_equal(store.read_log_probs([step])[0], expected(step, sum(_LENGTHS)))
    if steps:
        np.testing.assert_array_equal(store.read("entropy"), -expected(steps[0], sum(_LENGTHS)))
        assert store.entropy_step == steps[0]


def make_store(path: Path, trajectories: np.ndarray, steps, *, lengths, entropy=None) -> TokenStore:
    """Make a store of given trajectories, ``(num_steps, num_tokens)``."""
    with open_writer(path, lengths) as writer:
        for step, values in zip(steps, trajectories, strict=True):
            writer.append(TokenStep(step, "run", f"f{step}", {}, {}, {}), values, entropy)
        return writer.store
