"""What generates: the Protocol of the engines, and their options.

An engine knows token ids alone.  Prompts are encoded and answers decoded by whoever calls it, once and in one
way, so that two engines differ in nothing but arithmetic.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ckptlin.errors import InputError
from ckptlin.evaluate.sampling import Sampling

__all__ = ["DTYPES", "Engine", "EngineOptions", "Generation", "Request"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is opened with.

    Attributes
    ----------
    max_model_len : int
        Tokens of the longest prompt with its answer; the evaluator sees to it.
    dtype : str
        That a model computes in: ``auto`` for its own, ``float32``, ``bfloat16``, ``float16``.
    tensor_parallel, data_parallel : int
        Devices that share a model, and copies of it; of ``vllm`` alone.
    gpu_memory : float
        Share of a device's memory that ``vllm`` may take; of no account on a CPU, or with ``kv_cache_gib``.
    kv_cache_gib : float, optional
        Memory for keys and values of each copy in ``vllm``; default 1 on a CPU, what is left on a GPU.
    batch_size : int, optional
        Answers that are generated at once; default what the engine finds fit.
    device : str, optional
        Of ``hf``: ``cpu``, ``cuda``, ...; default the accelerator, if there is one.
    """

    max_model_len: int = 4096
    dtype: str = "auto"
    tensor_parallel: int = 1
    data_parallel: int = 1
    gpu_memory: float = 0.9
    kv_cache_gib: float | None = None
    batch_size: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_model_len", "tensor_parallel", "data_parallel", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; it must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        if not 0 < self.gpu_memory <= 1:
            raise InputError(f"gpu_memory is {self.gpu_memory}; it must be over 0 and at most 1")
        if self.kv_cache_gib is not None and not 0 < self.kv_cache_gib < float("inf"):
            raise InputError(f"kv_cache_gib is {self.kv_cache_gib}; it must be over 0")


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for.

    Attributes
    ----------
    prompt_ids : tuple of int
    seed : int
        Of this answer alone.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer.

    Attributes
    ----------
    index : int
        Of its request among those that were given together.
    token_ids : tuple of int
        The token that ended it included.
    finished : bool
        Whether such a token ended it, and not the limit of its length.
    """

    index: int
    token_ids: tuple[int, ...]
    finished: bool


class Engine(Protocol):
    """Generates answers by one model after another; a context manager, since it holds processes and memory."""

    name: str

    def load(self, model: str | Path) -> None:
        """Load a model, in the place of the one before it.

        Weights of the same architecture go into the engine that is there already; what it has kept of the model
        before (prefix caches) is forgotten.

        Raises
        ------
        InputError
            If there is no such model, or the engine cannot run it.
        CheckpointError
            If weights of a directory are missing, cut short or unreadable.  After either error the engine has
            no model, or the one before, but never a mixture.
        """

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, stop_ids: Sequence[int]
    ) -> Iterator[list[Generation]]:
        """Generate an answer to each request; yield those that are ended, some at a time, in any order.

        An answer depends on its prompt and seed, not on its batch, as far as the arithmetic of the device does
        not.  ``sampling.num_samples`` and ``sampling.seed`` do not matter here.  When the iterator is closed
        early, what was not yielded is given up, and the engine can be used again.

        Raises
        ------
        InputError
            If a request cannot be answered in full; nothing is generated then.
        """

    def describe(self) -> dict[str, Any]:
        """Return what results depend on: versions, device, dtype, as plain data."""

    def close(self) -> None:
        """Give memory and processes back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
