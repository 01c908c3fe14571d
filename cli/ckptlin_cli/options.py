"""Options that several commands share, and how errors and results are shown."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ckptlin.errors import CkptlinError
from ckptlin.memory import parse_bytes

__all__ = [
    "SIZE",
    "UsageInOneLine",
    "budget_options",
    "cluster_options",
    "command",
    "csv_option",
    "figure_option",
    "group",
    "json_option",
    "memory_options",
    "not_empty",
    "out_option",
    "print_json",
    "quiet_option",
    "segment_option",
    "selection_options",
    "source_options",
    "steps_option",
]

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # generic since click 8.5 alone


class _Size(_SizeType):
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except CkptlinError as error:
            self.fail(str(error), param, ctx)


SIZE = _Size()


class UsageInOneLine(click.ClickException):
    """A wrong call of a command, told in one sentence."""

    exit_code = 2

    def __init__(self, error: click.UsageError, path: str) -> None:
        super().__init__(f"{path}: {error.format_message().rstrip('.')} (see `{path} --help`)")

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=file is None)


class _WithExamples(click.Command):
    """A command whose help ends with examples that work."""

    examples: Sequence[str] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise UsageInOneLine(error, ctx.command_path) from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:  # on one line each, however long, to be copied
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class _Group(_WithExamples, click.Group):
    """Commands under a common name, in the order in which they were given."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # whole sentences, which click would cut short
            formatter.write_dl(
                [(name, item.get_short_help_str(limit=200)) for name, item in self.commands.items()]
            )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise UsageInOneLine(error, ctx.command_path) from error


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
                if debug or error.errno == errno.EPIPE:  # click ends quietly when a pipe closes
                    raise
                where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
                click.echo(f"ckptlin {name}: {error.strerror or error}{where}", err=True)
                sys.exit(2)

        with_debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(guarded)
        made = click.command(name, cls=_WithExamples)(with_debug)
        made.examples = examples
        return made

    return decorate


def group(
    name: str, summary: str, commands: Sequence[click.Command], *, examples: Sequence[str]
) -> click.Group:
    """Put commands that are named ``NAME COMMAND`` under their common first word."""
    made = _Group(name, help=summary, no_args_is_help=False)
    made.examples = examples
    for item in commands:
        made.add_command(item, str(item.name).removeprefix(f"{name} "))
    return made


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


def segment_option(function: F) -> F:
    """``--segment``."""
    return click.option(
        "--segment",
        metavar="K|last",
        help="Instead of --steps: one stretch of steps between jumps, by its number (`ckptlin info`) or last.",
    )(function)


def not_empty(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse what an unset variable of the shell becomes; as a path it would be the current directory."""
    if value == "":
        raise click.BadParameter("it must not be empty", ctx, param)
    return value


def csv_option(function: F) -> F:
    """``--csv``."""
    return _output_file("--csv", "csv_path", "Write every figure as CSV.", _in_directory)(function)


def figure_option(name: str, help: str) -> Callable[[F], F]:
    """``--figure`` or ``--plot``, a file; the argument is ``figure_path``."""
    return _output_file(name, "figure_path", f"{help}, as .png, .svg or .pdf.", _figure)


def _output_file(
    name: str, argument: str, help: str, callback: Callable[[click.Context, click.Parameter, Any], Any]
) -> Callable[[F], F]:
    file = click.Path(dir_okay=False, writable=True, path_type=Path)
    return click.option(name, argument, type=file, metavar="FILE", callback=callback, help=help)


def _in_directory(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Find out before hours of work that a file cannot be written after them."""
    if value is not None and not value.absolute().parent.is_dir():
        raise click.UsageError(
            f"{param.opts[0]} {value} lies in no directory that exists; make {value.parent} first", ctx
        )
    return value


def _figure(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is not None:
        from ckptlin.report import check_figure_path

        try:
            check_figure_path(value)
        except CkptlinError as error:
            raise click.UsageError(str(error), ctx) from error
    return _in_directory(ctx, param, value)


def out_option(function: F) -> F:
    """``--out``, a directory."""
    return click.option(
        "--out",
        "out_dir",
        type=click.Path(),
        required=True,
        callback=not_empty,
        help="Directory of the checkpoint.",
    )(function)


def budget_options(function: F) -> F:
    """``--memory`` and ``--workers``."""
    function = click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads, or processes.  [default: all processors]",
    )(function)
    return click.option(
        "--memory",
        type=SIZE,
        metavar="SIZE",
        help="Memory for each process to stay within, such as 512MB.  [default: 1GiB, or half of what is free]",
    )(function)


def cluster_options(function: F) -> F:
    """``--scheduler`` and ``--processes``."""
    function = click.option(
        "--processes", is_flag=True, help="Workers are processes of a local Dask cluster instead of threads."
    )(function)
    return click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on the workers of a Dask cluster, such as tcp://10.0.0.1:8786; they must see the same paths.",
    )(function)


def memory_options(function: F) -> F:
    """``--memory``, ``--workers`` and ``--dry-run``."""
    function = click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")(function)
    return budget_options(function)


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
    """Print plain data as JSON on stdout; NaN and infinity, which JSON has not, are null."""
    click.echo(json.dumps(_finite(data), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
