"""Options that several commands share, and how errors and results are shown."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from ckptlin.errors import CkptlinError
from ckptlin.memory import parse_bytes

__all__ = [
    "command",
    "json_option",
    "memory_options",
    "print_json",
    "quiet_option",
    "selection_options",
    "source_options",
    "steps_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[int]):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except CkptlinError as error:
            self.fail(str(error), param, ctx)


SIZE = _Size()


class _Command(click.Command):
    """A command whose help ends with examples that work."""

    examples: Sequence[str] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write_text(example)


def command(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command whose errors end in one sentence and exit status 2, with ``--debug`` for the traceback."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def guarded(*args: Any, debug: bool, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except CkptlinError as error:
                if debug:
                    raise
                click.echo(f"ckptlin {name}: {error}", err=True)
                sys.exit(2)
            except OSError as error:
                if debug or error.filename is None:
                    raise
                click.echo(f"ckptlin {name}: {error.strerror}: {error.filename}", err=True)
                sys.exit(2)

        with_debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(guarded)
        made = click.command(name, cls=_Command)(with_debug)
        made.examples = examples
        return made

    return decorate


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def quiet_option(function: F) -> F:
    """``--quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress bars.")(function)


def steps_option(function: F) -> F:
    """``--steps``."""
    return click.option(
        "--steps",
        metavar="WINDOW",
        help="Steps to use: FIRST:LAST[:STRIDE], ends included, or a list 0,100,300.  [default: all]",
    )(function)


def memory_options(function: F) -> F:
    """``--memory``, ``--workers`` and ``--dry-run``."""
    function = click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")(function)
    function = click.option(
        "--workers", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: all processors]"
    )(function)
    return click.option(
        "--memory",
        type=SIZE,
        metavar="SIZE",
        help="Memory to stay within, such as 512MB.  [default: 1GiB, or half of what is free]",
    )(function)


def selection_options(function: F) -> F:
    """``--include`` and ``--exclude``."""
    function = click.option(
        "--exclude", multiple=True, metavar="PATTERN", help="Leave out tensors; may be repeated."
    )(function)
    return click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Only tensors whose name holds PATTERN, or matches it if it has a wildcard; may be repeated.",
    )(function)


def source_options(function: F) -> F:
    """``--base`` and ``--skip-incomplete``, for commands that read a run."""
    function = click.option(
        "--skip-incomplete", is_flag=True, help="Leave incomplete checkpoints out, and say so."
    )(function)
    return click.option(
        "--base", type=click.Path(), metavar="PATH", help="Model that training began from, as step 0."
    )(function)


def print_json(data: Mapping[str, Any]) -> None:
    """Print plain data as JSON on stdout; NaN, which JSON has not, is null."""
    click.echo(json.dumps(_without_nan(data), indent=2, ensure_ascii=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
