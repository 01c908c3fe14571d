"""Progress of a training on stderr: a live line on a terminal, a line a save elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from ckptlin_cli.tables import duration

if TYPE_CHECKING:
    from ckptlin.rl.state import JumpRecord
    from ckptlin.rl.step_log import StepRow

__all__ = ["StepProgress"]


class StepProgress:
    """Shows steps, saves and jumps; a `StepListener`, a `Progress` for notes, and a context manager.

    Parameters
    ----------
    num_steps : int
        Real steps of the run.
    is_quiet : bool
        Show notes alone.
    """

    def __init__(self, num_steps: int, *, is_quiet: bool) -> None:
        self._num_steps = num_steps
        self._is_quiet = is_quiet
        self._is_live = not is_quiet and sys.stderr.isatty()
        self._live: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._first: StepRow | None = None
        self._since_save: list[StepRow] = []

    def on_step(self, row: "StepRow") -> None:
        """Show a step."""
        if self._first is None:
            self._first = row
        self._since_save.append(row)
        if self._live is not None:
            from rich.text import Text

            self._bar.update(self._task, completed=row.step, left=self._left(row))
            self._live.update(_stack(self._bar, Text(describe([row]), no_wrap=True, overflow="ellipsis")))

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Tell of a save, with the means of the steps since the one before."""
        rows, self._since_save = self._since_save, []
        if rows and not self._is_live and not self._is_quiet:
            last = rows[-1]
            self._print(
                f"step {last.step}/{self._num_steps}: {path.name}, {describe(rows)}, {self._left(last)} left"
            )

    def on_jump(self, jump: "JumpRecord", *, undone: bool) -> None:
        """Tell of a jump; of one that was undone a note has told already."""
        if not undone and not self._is_quiet:
            self._print(f"jumped from virtual step {jump.from_step} to {jump.to_step} by {jump.method}")

    @contextmanager
    def phase(self, title: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
        """Show nothing: steps are what is waited for."""
        yield lambda num_bytes: None

    def note(self, message: str) -> None:
        """Tell the user something that matters."""
        self._print(f"note: {message}")

    def __enter__(self) -> Self:
        if self._is_live:
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.fields[left]} left"),
            )
            self._task = self._bar.add_task("", total=self._num_steps, left="-")
            self._live = Live(self._bar, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: str) -> None:
        if self._live is None:
            click.echo(line, err=True)
        else:
            # Above the live line; with neither markup nor breaks of rich's own.
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self, row: "StepRow") -> str:
        first = self._first
        if first is None or row.step == first.step:
            return "-"
        each = (row.elapsed_s - first.elapsed_s) / (row.step - first.step)
        return duration((self._num_steps - row.step) * each)


def describe(rows: "list[StepRow]") -> str:
    """Write the means of some steps in a few words; what was not taken is left out."""
    last = rows[-1]
    words: list[str] = []
    for name, form in (
        ("reward", "reward {:.3f}"),
        ("length", "{:.1f} tokens"),
        ("entropy", "entropy {:.2f}"),
        ("clip_share", "clipped {:.1%}"),
        ("kl_start", "KL {:.4f}"),
    ):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            words.append(form.format(sum(values) / len(values)))
    if last.reward is None:
        words.insert(0, f"loss {sum(row.loss for row in rows) / len(rows):.4f}")
    if last.tokens_per_s:
        words.append(f"{sum(row.tokens_per_s for row in rows) / len(rows):.0f} tokens/s")
    return ", ".join(words)


def _stack(*lines: Any) -> Any:
    from rich.console import Group

    return Group(*lines)
