"""Progress of an evaluation on stderr: a live line on a terminal, a line a model elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from ckptlin_cli.tables import duration

if TYPE_CHECKING:
    from ckptlin.evaluate.listener import SampleCount

__all__ = ["SampleProgress"]

_PATIENCE_S = 120.0  # a log of a job shows at least every so often that it goes on


class SampleProgress:
    """Shows models, problems, samples and speed; an `EvaluationListener`, and a context manager.

    Parameters
    ----------
    is_quiet : bool
        Show notes alone.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_live = not is_quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._last: SampleCount | None = None
        self._told = time.monotonic()

    def on_loading(self, model: str, what: str) -> None:
        """Show what is waited for."""
        self._tell_end()
        self._describe(f"{model}: {what}", completed=0, total=None)

    def on_samples(self, count: "SampleCount") -> None:
        """Show how far a model is."""
        self._last = count
        if not self._is_live and not self._is_quiet and time.monotonic() - self._told > _PATIENCE_S:
            self._print(describe(count))
        self._describe(describe(count), completed=count.samples, total=count.num_samples)

    def on_grading(self, model: str, num_samples: int) -> None:
        """Show that a model is graded."""
        self._tell_end()
        self._describe(f"{model}: grading {num_samples:,} answers", completed=0, total=None)

    def note(self, message: str) -> None:
        """Tell the user something that matters."""
        self._print(f"note: {message}")

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if error is None:
            self._tell_end()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tell_end(self) -> None:
        """Say in a line what a model has answered."""
        count, self._last = self._last, None
        if count is not None and not self._is_quiet:
            took = f"{count.tokens:,} tokens in {duration(count.elapsed_s)}"
            self._print(
                f"{count.model} ({count.model_number} of {count.num_models}): {count.samples:,} answers to "
                f"{count.num_problems:,} problems, {took}{_speed(count)}"
            )

    def _describe(self, text: str, *, completed: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=completed, total=total)

    def _print(self, line: str) -> None:
        self._told = time.monotonic()
        if self._bar is None:
            click.echo(line, err=True)
        else:
            # Above the live line; with neither markup nor breaks of rich's own.
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe(count: "SampleCount") -> str:
    """Write how far an evaluation is."""
    left = f", {duration(count.left_s)} left" if count.left_s is not None else ""
    return (
        f"{count.model} ({count.model_number}/{count.num_models}): {count.problems:,}/{count.num_problems:,} "
        f"problems, {count.samples:,}/{count.num_samples:,} samples{_speed(count)}{left}"
    )


def _speed(count: "SampleCount") -> str:
    return f", {count.tokens / count.elapsed_s:,.0f} tokens/s" if count.tokens and count.elapsed_s else ""
