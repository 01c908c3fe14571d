"""What computes log-probabilities: the Protocol of the engines, and their options.

An engine knows token ids alone, as those that generate do (`ckptlin.evaluate.engines`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from ckptlin.errors import InputError
from ckptlin.outputs.step_weights import StepWeights

__all__ = ["Probe", "Scored", "Scorer", "ScorerOptions"]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A prompt and the response whose tokens are scored.

    Attributes
    ----------
    prompt_ids, token_ids : numpy.ndarray
        ``(n,) int32``, at least one each.
    """

    prompt_ids: np.ndarray[Any, Any]
    token_ids: np.ndarray[Any, Any]

    @property
    def num_tokens(self) -> int:
        """Of both together."""
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a model makes of a probe.

    Attributes
    ----------
    index : int
        Of the probe among those that were given together.
    log_probs : numpy.ndarray
        ``(num_response_tokens,) float32``: of each token of the response, given all before it.
    entropy : numpy.ndarray or None
        Of the distribution that each of them was drawn from, in nats.
    """

    index: int
    log_probs: np.ndarray[Any, Any]
    entropy: np.ndarray[Any, Any] | None


@dataclass(frozen=True, slots=True)
class ScorerOptions:
    """What an engine is opened with.

    Attributes
    ----------
    max_tokens : int
        Of the longest probe, prompt and response together.
    dtype : str
        That models compute in: ``float32``, ``bfloat16`` or ``float16``.
    batch_tokens : int
        Tokens that go through the model at once, padding included; a longer probe goes alone.
    device : str, optional
        Of ``hf``: ``cpu``, ``cuda``, ...; default the accelerator, if there is one.
    tensor_parallel : int
        Devices that share a model, of ``vllm`` alone.
    gpu_memory : float
        Share of a device's memory that ``vllm`` may take.
    """

    max_tokens: int
    dtype: str
    batch_tokens: int = 8192
    device: str | None = None
    tensor_parallel: int = 1
    gpu_memory: float = 0.9

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise InputError(f"--batch-tokens is {self.batch_tokens}; it must be at least 1")


class Scorer(Protocol):
    """Computes log-probabilities under one checkpoint after another; a context manager."""

    name: str
    has_entropy: bool
    from_tensors: bool  # whether it takes tensors in memory, or loads a directory

    def load(self, weights: StepWeights, directory: Path) -> None:
        """Take the weights of a step, in the place of those before it.

        Parameters
        ----------
        weights : StepWeights
        directory : Path
            With its configuration, and the weights too for an engine that loads a directory.

        Raises
        ------
        InputError
            If the engine cannot run the model.
        """

    def score(self, probes: Sequence[Probe], *, with_entropy: bool = False) -> Iterator[list[Scored]]:
        """Score every token of every response; yield some probes at a time, in any order.

        The result does not depend on what is computed together, beyond rounding.
        """

    def describe(self) -> dict[str, Any]:
        """Return what results depend on: device, dtype, how the head is computed; as plain data."""

    def close(self) -> None:
        """Give memory and processes back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
