"""Options of commands that ask checkpoints about the tokens of responses, and what these commands say alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ckptlin_cli.options import not_empty, source_options, steps_option

__all__ = [
    "Probing",
    "check_run_and_responses",
    "compared_steps",
    "fitted_options",
    "plot_option",
    "probing_options",
    "responses_option",
    "tokens_options",
    "with_null",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Probing:
    """Which checkpoints are asked, about how many responses, and how they compute: keywords of the library."""

    given: dict[str, Any]

    @property
    def steps(self) -> str | None:
        """The window of steps."""
        steps: str | None = self.given["steps"]
        return steps


_PROBING = (
    steps_option,
    source_options,
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N responses."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float64", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="That models compute in.",
    ),
    click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=8192,
        show_default=True,
        metavar="N",
        help="Tokens that go through a model of transformers at once.",
    ),
    click.option(
        "--device", metavar="NAME", help="Of transformers: cpu, cuda, ...  [default: the accelerator, if any]"
    ),
)


def probing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--steps``, ``--base``, ``--dtype``, ...; the command takes them as ``probing``, a `Probing`."""
    names = ("steps", "base", "skip_incomplete", "limit", "dtype", "batch_tokens", "device")

    @wraps(function)
    def packed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, probing=Probing({name: kwargs.pop(name) for name in names}), **kwargs)

    for option in reversed(_PROBING):
        packed = option(packed)
    return packed


def responses_option(*, required: bool) -> Callable[[F], F]:
    """``--responses``; the argument is ``responses_path``."""
    return click.option(
        "--responses",
        "responses_path",
        type=click.Path(path_type=Path),
        required=required,
        callback=not_empty,
        metavar="FILE",
        help="JSON lines: of `ckptlin responses`, or with prompt (or messages) and response.",
    )


def tokens_options(function: F) -> F:
    """``--tokens`` and ``--seed``; the arguments are ``num_tokens`` and ``seed``."""
    function = click.option(
        "--seed", type=int, default=0, show_default=True, help="Of all that is drawn at random."
    )(function)
    return click.option(
        "--tokens",
        "num_tokens",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        metavar="N",
        help="Tokens to look at, chosen at random; all if there are no more.",
    )(function)


def plot_option(help: str) -> Callable[[F], F]:
    """``--plot``, a directory; the argument is ``plot_dir``."""
    return click.option(
        "--plot",
        "plot_dir",
        type=click.Path(file_okay=False, path_type=Path),
        callback=not_empty,
        metavar="DIR",
        help=help,
    )


def fitted_options(content: str) -> Callable[[F], F]:
    """``--out``, ``--no-fit`` and ``--dry-run``, of what computes into a store and fits it."""

    def decorate(function: F) -> F:
        function = click.option("--dry-run", is_flag=True, help="Show what would be done.")(function)
        function = click.option(
            "--no-fit", is_flag=True, help="Compute alone; do not tell how linear they are."
        )(function)
        return click.option(
            "--out",
            "out_dir",
            required=True,
            callback=not_empty,
            metavar="DIR",
            help=f"Store of the {content}; what it has is kept.",
        )(function)

    return decorate


def check_run_and_responses(source: tuple[str, ...], responses: Path | None, *, dry_run: bool) -> None:
    """Refuse one without the other, and a dry run without both; InputError."""
    from ckptlin.errors import InputError

    if bool(source) != (responses is not None):
        raise InputError(
            "a run goes with --responses FILE, and that with a run; leave both out to fit what --out holds"
        )
    if dry_run and not source:
        raise InputError("--dry-run shows what would be computed, and without a run nothing is; leave it out")


def compared_steps(plan: Any) -> list[tuple[str, str]]:
    """Tell which steps a plan computes, and which are in its store."""
    from ckptlin.store.store import describe_steps

    return [
        ("would compute", describe_steps(plan.steps) if plan.steps else "nothing"),
        ("there already", describe_steps(plan.present) if plan.present else "nothing"),
    ]


def with_null(own: float | None, null: float | None, write: Callable[[float | None], str]) -> tuple[str, str]:
    """Return the cells of a figure and of the null's, which is in brackets."""
    return write(own), f"({write(null)})"
