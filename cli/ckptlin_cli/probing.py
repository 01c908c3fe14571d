"""Options of commands that look inside models at the tokens of responses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ckptlin_cli.options import not_empty

__all__ = ["probing_options", "responses_option"]

F = TypeVar("F", bound=Callable[..., Any])


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


def probing_options(function: F) -> F:
    """``--limit``, ``--tokens``, ``--seed``, ``--dtype``, ``--batch-tokens`` and ``--device``."""
    for option in reversed(
        (
            click.option(
                "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N responses."
            ),
            click.option(
                "--tokens",
                "num_tokens",
                type=click.IntRange(min=1),
                default=4096,
                show_default=True,
                metavar="N",
                help="Tokens to look at, chosen at random; all if there are no more.",
            ),
            click.option(
                "--seed", type=int, default=0, show_default=True, help="Of all that is drawn at random."
            ),
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
                help="Tokens that go through a model at once.",
            ),
            click.option("--device", metavar="NAME", help="cpu, cuda, ...  [default: the accelerator, if any]"),
        )
    ):
        function = option(function)
    return function
