"""Options of commands that let models answer: how answers are drawn, and by which engine.

Each group of options reaches its command as one argument.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ckptlin.evaluate.engines import EngineOptions
    from ckptlin.evaluate.sampling import Sampling

__all__ = ["EngineChoice", "SamplingChanges", "engine_options", "prompt_options", "sampling_options"]

Command = Callable[..., Any]


@dataclass(frozen=True)
class SamplingChanges:
    """What the user has said of the sampling; the rest is as it was."""

    given: dict[str, Any]

    def applied_to(self, sampling: "Sampling") -> "Sampling":
        """Return a sampling with these changes."""
        return replace(sampling, **self.given)


@dataclass(frozen=True)
class EngineChoice:
    """The engine that the user has chosen, None for the default, and its options."""

    name: str | None
    given: dict[str, Any]

    def options(self) -> "EngineOptions":
        """Return the engine's options."""
        from ckptlin.evaluate.engines import EngineOptions

        return EngineOptions(**self.given)


_SAMPLING = (
    click.option(
        "--samples", "num_samples", type=click.IntRange(min=1), metavar="N", help="Answers to each problem."
    ),
    click.option("--temperature", type=float, help="0 takes the likeliest token."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens of this probability together."),
    click.option("--top-k", type=int, help="Draw from so many at most; 0 for all."),
    click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Of an answer."),
    click.option("--seed", type=int, help="Of the answers."),
)
_ENGINE = (
    click.option("--engine", metavar="NAME", help="vllm or hf.  [default: vllm where it is installed]"),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="That models compute in.",
    ),
    click.option(
        "--tensor-parallel", type=click.IntRange(min=1), default=1, help="Devices that share a model (vllm)."
    ),
    click.option("--data-parallel", type=click.IntRange(min=1), default=1, help="Copies of a model (vllm)."),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="Share that vllm may take.",
    ),
    click.option(
        "--kv-cache",
        "kv_cache_gib",
        type=float,
        metavar="GIB",
        help="For keys and values where vllm runs on a CPU.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(min=1), metavar="N", help="Answers that are written at once."
    ),
    click.option("--device", metavar="NAME", help="Of hf: cpu, cuda, ..."),
)


def prompt_options(function: Command) -> Command:
    """``--template`` and ``--chat/--no-chat``."""
    function = click.option(
        "--chat/--no-chat", default=None, help="Whether the prompt is a chat message.  [default: the task's]"
    )(function)
    return click.option(
        "--template", metavar="NAME|TEXT", help="Prompt: boxed, plain, or a text with {problem}."
    )(function)


def sampling_options(function: Command) -> Command:
    """``--samples``, ``--temperature``, ...; the command takes them as ``sampling``, a `SamplingChanges`."""
    names = ("num_samples", "temperature", "top_p", "top_k", "max_tokens", "seed")

    @wraps(function)
    def packed(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in names}
        changes = SamplingChanges({name: value for name, value in given.items() if value is not None})
        return function(*args, sampling=changes, **kwargs)

    for option in reversed(_SAMPLING):
        packed = option(packed)
    return packed


def engine_options(function: Command) -> Command:
    """``--engine``, ``--dtype``, ...; the command takes them as ``engine``, an `EngineChoice`."""
    names = (
        *("dtype", "tensor_parallel", "data_parallel", "gpu_memory"),
        *("kv_cache_gib", "batch_size", "device"),
    )

    @wraps(function)
    def packed(*args: Any, engine: str | None, **kwargs: Any) -> Any:
        choice = EngineChoice(engine, {name: kwargs.pop(name) for name in names})
        return function(*args, engine=choice, **kwargs)

    for option in reversed(_ENGINE):
        packed = option(packed)
    return packed
