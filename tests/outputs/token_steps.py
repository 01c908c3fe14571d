"""Stores of made-up log-probabilities, without a model."""

from pathlib import Path

import numpy as np

from ckptlin.outputs.responses import Responses
from ckptlin.outputs.scorers import Probe
from ckptlin.outputs.token_store import TokenStep, TokenStore, open_token_writer

__all__ = ["append_steps", "expected", "make_responses", "make_store"]

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


def append_steps(path: str, steps: list[int]) -> None:
    """Append the steps that are not there."""
    responses = make_responses()
    with open_token_writer(path, responses, tokenizer="t", texts={n: str(n) for n in range(9)}) as writer:
        for step in steps:
            if writer.store.find(step) is None:
                values = expected(step, responses.num_tokens)
                writer.append(
                    TokenStep(step, f"run/{step}", f"f{step}", {}, {"engine": "hf"}, {}), values, -values
                )


def make_store(path: Path, trajectories: np.ndarray, steps, *, lengths, entropy=None) -> TokenStore:
    """Make a store of given trajectories, ``(num_steps, num_tokens)``."""
    responses = make_responses(lengths)
    with open_token_writer(path, responses, tokenizer="t", texts={n: str(n) for n in range(9)}) as writer:
        for step, values in zip(steps, trajectories, strict=True):
            writer.append(TokenStep(step, "run", f"f{step}", {}, {}, {}), values, entropy)
        return writer.store
