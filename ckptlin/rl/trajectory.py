"""A run's checkpoints appended to a trajectory store while it trains, and how linear it is so far.

What goes wrong with the store never ends the training: it is said, and the next checkpoint tries again with all
that are missing.  A store that belongs to another past (other bytes at a step, or steps that this run has not
come to) is left as it is.
"""

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptlin.atomic import write_file
from ckptlin.errors import CheckpointMismatchError, CkptlinError, StepConflictError
from ckptlin.fit import fit
from ckptlin.ingest import ingest
from ckptlin.ingest_plan import plan_ingest
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.state import JumpRecord
from ckptlin.rl.step_log import StepRow, open_tensorboard
from ckptlin.segments import segments_of

__all__ = ["R2SoFar", "StoreAppender", "TrajectoryListener", "append_to_store", "read_r2"]

# Through two points every line fits.
_MIN_CHECKPOINTS = 3


@dataclass(frozen=True)
class R2SoFar:
    """How linear the weights are in the step, of all parameters whose bits changed; see `ckptlin.fit`.

    Attributes
    ----------
    step, first_step : int
        Last and first checkpoint that the lines are fitted to: those since the last jump.  In a run of
        ckptlin's trainer these are virtual steps.
    num_checkpoints : int
    median, above_7 : float or None
        Median R², and the share above 0.7; None if nothing has moved.
    null_median, null_above_7 : float or None
        What random walks over the same steps would show.
    """

    step: int
    first_step: int
    num_checkpoints: int
    median: float | None
    null_median: float | None
    above_7: float | None
    null_above_7: float | None

    def __str__(self) -> str:
        if self.median is None or self.above_7 is None:
            return f"R² so far, {self.num_checkpoints} checkpoints: no parameter has moved"
        null = f" (random walks {self.null_median:.2f})" if self.null_median is not None else ""
        share = f" (random walks {self.null_above_7:.0%})" if self.null_above_7 is not None else ""
        return (
            f"R² so far, {self.num_checkpoints} checkpoints: median {self.median:.2f}{null}, "
            f"above 0.7 {self.above_7:.0%}{share}"
        )


def append_to_store(
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
) -> R2SoFar | None:
    """Append what a store has not yet, and fit the checkpoints since the last jump.

    The fit is not kept in the store: it would be stale at the next save.

    Parameters
    ----------
    checkpoints, base
        As of `ckptlin.ingest.ingest`.
    store : path-like
        Directory of the store, or a URL; made if it is not there.

    Returns
    -------
    R2SoFar or None
        None with fewer than three checkpoints since the last jump.

    Raises
    ------
    StepConflictError
        If a step is in the store with other content, or one that is missing lies before its last.
    CkptlinError
        As `ckptlin.ingest.ingest` and `ckptlin.fit.fit` raise it.
    """
    plan = plan_ingest(checkpoints, store, base=base)
    plan.run.close()
    if plan.rebuild and plan.store is not None:
        raise StepConflictError(
            f"{plan.location} holds step {plan.store.steps[-1]}, and would have to be built anew to take in "
            f"step {plan.added[0]}, which lies before it"
        )
    result = ingest(checkpoints, store, base=base)
    last = segments_of(result.store.steps, result.store.jumps)[-1]
    if len(last) < _MIN_CHECKPOINTS:
        return None
    model = fit(result.store, segment="last", keep=False).summary.model()
    return R2SoFar(
        step=last[-1],
        first_step=last[0],
        num_checkpoints=len(last),
        median=_plain(model.moved.median),
        null_median=_plain(model.null_moved.median),
        above_7=_plain(model.moved.above_7),
        null_above_7=_plain(model.null_moved.above_7),
    )


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)  # of numpy's scalars neither CSV nor JSON knows


class StoreAppender:
    """Appends to a store at each save, keeps a table of R² so far, and says what fails instead of raising it.

    Parameters
    ----------
    store : path-like
    table : Path
        CSV file of `R2SoFar`, a row a save; rows of later steps than the one that is added are made again.
    note : callable
        Told in a sentence what failed, once each time.
    """

    def __init__(self, store: str | os.PathLike[str], table: Path, *, note: Callable[[str], None]) -> None:
        self._store = store
        self._table = table
        self._note = note
        self._gave_up = False

    def append(
        self,
        checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        step: int,
        *,
        base: str | os.PathLike[str] | None = None,
    ) -> R2SoFar | None:
        """Append what is missing up to the checkpoint of a step; see `append_to_store`."""
        if self._gave_up:
            return None
        try:
            found = append_to_store(checkpoints, self._store, base=base)
            if found is not None:
                rows = [row for row in read_r2(self._table) if row.step < found.step]
                write_file(self._table, _as_csv([*rows, found]))
        except (StepConflictError, CheckpointMismatchError) as error:
            self._gave_up = True
            self._note(
                f"checkpoint {step} and those after it are not appended to {self._store}: {error}; training "
                "goes on, and `ckptlin ingest` makes another store of the run"
            )
        except (CkptlinError, OSError) as error:
            self._note(
                f"checkpoint {step} could not be appended to {self._store}: {error}; training goes on, and the "
                "next save tries again"
            )
        else:
            return found
        return None


class TrajectoryListener:
    """Appends each checkpoint of a run to a trajectory store; a `StepListener` and a context manager.

    R² so far goes to ``r2.csv`` in the run's directory and, if the run writes for TensorBoard, to
    ``tensorboard/trajectory`` by the virtual step.

    Parameters
    ----------
    store : path-like
    run : RunDirectory
    progress : Progress
        Takes notes.
    """

    def __init__(
        self, store: str | os.PathLike[str], run: RunDirectory, *, progress: Progress = NO_PROGRESS
    ) -> None:
        self._run = run
        self._appender = StoreAppender(store, run.path / "r2.csv", note=progress.note)
        self._writer: Any = None

    def on_step(self, row: StepRow) -> None:
        """Nothing to append."""

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Append all that the store has not yet: also what a kill or a failure has left out."""
        found = self._appender.append(self._run.path, virtual_step)
        if found is None or not self._run.record["config"]["log"]["tensorboard"]:
            return
        if self._writer is None:
            # A directory of its own: TensorBoard reads the files of one after the other, not side by side.
            self._writer = open_tensorboard(self._run.tensorboard_path / "trajectory", found.step - 1)
        for name in ("median", "null_median", "above_7", "null_above_7"):
            value = getattr(found, name)
            if value is not None:
                self._writer.add_scalar(f"r2/{name}", value, found.step)
        self._writer.flush()

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Nothing to append; ``ingest`` reads the run's own record of its jumps."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def read_r2(path: Path) -> list[R2SoFar]:
    """Read a table of R² so far; empty where there is none.

    Raises
    ------
    CkptlinError
        If it is none of this version.
    """
    if not path.is_file():
        return []
    names = [field.name for field in fields(R2SoFar)]
    table = list(csv.reader(io.StringIO(path.read_text())))
    try:
        if table[0] != names:
            raise ValueError(f"columns {', '.join(table[0])}")
        return [
            R2SoFar(*map(int, row[:3]), *(float(text) if text else None for text in row[3:]))
            for row in table[1:]
        ]
    except (ValueError, IndexError, TypeError) as error:
        raise CkptlinError(f"{path} is no table of R²: {error}; move it away") from None


def _as_csv(rows: Sequence[R2SoFar]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([field.name for field in fields(R2SoFar)])
    for row in rows:
        writer.writerow(["" if value is None else repr(value) for value in asdict(row).values()])
    return buffer.getvalue().encode()
