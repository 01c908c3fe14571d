"""Progress bars on stderr, one a phase."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ckptlin.progress import Progress

if TYPE_CHECKING:
    from ckptlin.checkpoints import SkippedCheckpoint

__all__ = ["note_skipped", "progress_bars"]


class _Bars:
    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or not sys.stderr.isatty()

    @contextmanager
    def phase(self, title: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
        if self._quiet:
            yield lambda num_bytes: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        with RichProgress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bars:
            task = bars.add_task(title, total=num_bytes)
            yield lambda num_bytes: bars.advance(task, num_bytes)

    def note(self, message: str) -> None:
        click.echo(f"note: {message}", err=True)


def progress_bars(quiet: bool) -> Progress:
    """Return progress bars, or silence where nobody watches (``--quiet``, or stderr is no terminal)."""
    return _Bars(quiet)


def note_skipped(progress: Progress, skipped: "Iterable[SkippedCheckpoint]") -> None:
    """Say which checkpoints ``--skip-incomplete`` left out, and why."""
    for item in skipped:
        progress.note(f"left out incomplete checkpoint step {item.step}: {item.reason}")
