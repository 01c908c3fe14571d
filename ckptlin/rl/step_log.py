"""What is known of a step, and where it is written: CSV and TensorBoard, and Weights & Biases if asked."""

import csv
import importlib.util
import io
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from ckptlin.atomic import is_disk_full, write_file
from ckptlin.errors import CheckpointError, DiskFullError, MissingExtraError
from ckptlin.rl.config import LogConfig
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.state import JumpRecord, TrainState

__all__ = ["Listeners", "StepListener", "StepLog", "StepRow", "check_log", "open_tensorboard", "read_log"]


@dataclass(frozen=True)
class StepRow:
    """A step: one batch of rollouts and the updates made with it.

    Attributes
    ----------
    step, virtual_step, updates : int
    reward, reward_std : float or None
        Over all answers of the step; None in supervised training.
    length : float or None
        Mean tokens of an answer.
    truncated : float or None
        Share of the answers that the length limit cut off.
    entropy : float or None
        Mean over tokens, in nats.
    clip_share : float or None
        Share of the tokens whose ratio was clipped.
    kl_start : float or None
        Estimate of KL(policy ‖ starting model) per token, in nats, where it was made.
    loss : float
    grad_norm : float or None
        Norm of the last update's gradient before it was cut; None where none was taken.
    lr : float
    tokens : int
        Generated so far.
    tokens_per_s : float
    elapsed_s : float
        Seconds of training so far.
    """

    step: int
    virtual_step: int
    updates: int
    reward: float | None
    reward_std: float | None
    length: float | None
    truncated: float | None
    entropy: float | None
    clip_share: float | None
    kl_start: float | None
    loss: float
    grad_norm: float | None
    lr: float
    tokens: int
    tokens_per_s: float
    elapsed_s: float


class StepListener(Protocol):
    """Is told of what happens while a run trains; may raise `TrainingStoppedError`."""

    def on_step(self, row: StepRow) -> None:
        """Take a step, before anything of it is saved."""
        ...

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Take a checkpoint that was written."""
        ...

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Take a jump, or one that was taken back."""
        ...


class Listeners:
    """Several listeners as one, told in their order."""

    def __init__(self, listeners: Sequence[StepListener]) -> None:
        self._listeners = tuple(listeners)

    def on_step(self, row: StepRow) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_step(row)

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_checkpoint(virtual_step, path)

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Tell all."""
        for listener in self._listeners:
            listener.on_jump(jump, undone=undone)


class StepLog:
    """``log.csv``, TensorBoard and, if asked, Weights & Biases; a context manager.

    Rows beyond the state that training goes on from are removed: they will be made again.
    """

    def __init__(self, run: RunDirectory, state: TrainState) -> None:
        config = run.record["config"]
        self._names = [field.name for field in fields(StepRow)]
        rows = [row for row in read_log(run.log_path) if row.step <= state.step]
        write_file(
            run.log_path, _as_csv(self._names, *([_text(v) for v in asdict(row).values()] for row in rows))
        )
        self._writer = self._wandb = None
        if config["log"]["tensorboard"]:
            self._writer = open_tensorboard(run.tensorboard_path, state.step)
        if config["log"]["wandb"]:
            self._wandb = _wandb(run, config)
        self._path = run.log_path
        # Without a buffer a row is one write, and a full disk is met here and not when the file is closed.
        self._file = run.log_path.open("ab", buffering=0)

    def on_step(self, row: StepRow) -> None:
        """Write a row."""
        values = asdict(row)
        try:
            self._file.write(_as_csv([_text(values[name]) for name in self._names]))
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DiskFullError(
                f"the disk is full: step {row.step} could not be written to {self._path}; free some space and "
                "run the same command again, which goes on from the last resume point"
            ) from error
        figures = {name: value for name, value in values.items() if name != "step" and value is not None}
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"train/{name}", value, row.step)
        if self._wandb is not None:
            self._wandb.log(figures, step=row.step)

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Nothing to write."""

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Mark where the weights jumped."""
        if self._writer is not None:
            self._writer.add_scalar(
                "jump/undone" if undone else "jump/virtual_steps", jump.to_step - jump.from_step, jump.step
            )

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:
            if error is None:  # of a full disk the error on its way tells more
                raise
        if self._wandb is not None:
            self._wandb.finish()


def read_log(path: Path) -> list[StepRow]:
    """Read ``log.csv``; a last line that a kill cut off is left out.

    Returns
    -------
    list of StepRow
        Empty where there is no file.

    Raises
    ------
    CheckpointError
        If the columns are others, or a value is no number.
    """
    if not path.is_file():
        return []
    # Newlines are kept: a line without one was not written to its end.
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    names = {field.name: field.type for field in fields(StepRow)}
    table = list(csv.reader(lines))
    if table and table[0] != list(names):
        raise CheckpointError(
            f"{path} has other columns than this ckptlin writes ({', '.join(table[0])}); move it away"
        )
    rows = []
    for number, texts in enumerate(table[1:], start=2):
        try:
            values = [_number(kind, text) for kind, text in zip(names.values(), texts, strict=True)]
        except ValueError as error:
            raise CheckpointError(f"line {number} of {path} is no step: {error}; move it away") from None
        rows.append(StepRow(*values))
    return rows


def _number(kind: Any, text: str) -> Any:
    if text == "" and kind == float | None:
        return None
    return int(text) if kind is int else float(text)


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _as_csv(*rows: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def check_log(log: LogConfig) -> None:
    """Raise `MissingExtraError` if what a log is written with is not installed."""
    if log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError(
            'log.tensorboard needs tensorboard; pip install "ckptlin[train]", or set log.tensorboard=false'
        )
    if log.wandb and importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("log.wandb needs wandb; pip install wandb, or set log.wandb=false")


def open_tensorboard(path: Path, step: int) -> Any:
    """Open a writer that goes on after a step; what an earlier one has of later steps no longer counts."""
    from torch.utils.tensorboard import SummaryWriter

    # Also at step 0: a run that was killed before its first resume point begins again.
    return SummaryWriter(str(path), purge_step=step + 1)


def _wandb(run: RunDirectory, config: Any) -> Any:
    import wandb

    if "wandb_id" not in run.record:
        run.note(wandb_id=secrets.token_hex(6))
    return wandb.init(
        project=config["log"]["wandb_project"],
        id=run.record["wandb_id"],
        name=run.path.name,
        config=config,
        dir=str(run.path),
        resume="allow",
    )
