"""What a training would do, worked out before anything is loaded or written."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptlin.checkpoints.huggingface import HuggingFaceCheckpoint
from ckptlin.checkpoints.model_files import has_weights
from ckptlin.dtypes import is_fitted
from ckptlin.errors import DiskFullError
from ckptlin.memory import format_bytes
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.run_directory import find_run
from ckptlin.rl.state import TrainState
from ckptlin.segments import TRAIN_RECORD_NAME

__all__ = ["TrainPlan", "plan_training"]

# Checkpoints are float32.
_ITEM_BYTES = 4


@dataclass(frozen=True)
class TrainPlan:
    """What a training would do.

    Attributes
    ----------
    config : TrainConfig
    out_dir : Path
    resumes_at : int or None
        Real step that a run which is there would be gone on with from; None for a new one.
    steps, updates, answers : int
        Still to be made: real steps, updates of the optimizer, answers to be sampled (the guard's not counted).
    checkpoints : tuple of int
        Virtual steps of the checkpoints to be written.  Jumps that `auto` shortens or the guard takes back make
        later ones come earlier.
    num_params : int or None
        Of the model; None where it is not on this disk in safetensors.
    checkpoint_bytes, optimizer_bytes : int or None
        Size of one checkpoint, and of the optimizer's state in a resume point, whose weights are linked.
    free_bytes : int
        On the disk of the run.
    """

    config: TrainConfig
    out_dir: Path
    resumes_at: int | None
    steps: int
    updates: int
    answers: int
    checkpoints: tuple[int, ...]
    num_params: int | None
    checkpoint_bytes: int | None
    optimizer_bytes: int | None
    free_bytes: int

    @property
    def bytes_out(self) -> int | None:
        """Bytes that would be written: checkpoints, and two resume points, since one replaces the other."""
        if self.checkpoint_bytes is None or self.optimizer_bytes is None:
            return None
        return len(self.checkpoints) * self.checkpoint_bytes + 2 * self.optimizer_bytes

    def check_disk(self) -> None:
        """Refuse what will not fit.

        Raises
        ------
        DiskFullError
            If the disk has less free than the checkpoints will take.
        """
        if self.steps and self.bytes_out is not None and self.bytes_out > self.free_bytes:
            raise DiskFullError(
                f"the run {self.out_dir} will take {format_bytes(self.bytes_out)} for "
                f"{len(self.checkpoints)} checkpoints and the optimizer, but its disk has "
                f"{format_bytes(self.free_bytes)} free; free some space, raise save_every "
                f"({self.config.save_every}), or put the run elsewhere"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "out": str(self.out_dir),
            "resumes_at": self.resumes_at,
            "steps": self.steps,
            "updates": self.updates,
            "answers": self.answers,
            "checkpoints": list(self.checkpoints),
            "params": self.num_params,
            "checkpoint_bytes": self.checkpoint_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "bytes_out": self.bytes_out,
            "free_bytes": self.free_bytes,
            "config": self.config.to_dict(),
        }


def plan_training(config: TrainConfig, out_dir: Path, *, overwrite: bool = False) -> TrainPlan:
    """Work out what `ckptlin.rl.trainer.train` would do; nothing is written.

    Raises
    ------
    OutputExistsError
        If something else than a run is there.
    InputError
        If the run that is there was started with other settings.
    CheckpointError
        If the run's record or resume point, or the model's files, are damaged.
    """
    is_replaced = overwrite and (out_dir / TRAIN_RECORD_NAME).is_file()
    run = None if is_replaced else find_run(out_dir, config)
    state = None if run is None else run.latest()
    begin = TrainState(Path()) if state is None else state
    steps = max(config.steps - begin.step, 0)
    checkpoints = tuple(_checkpoints(config, begin))
    num_params = _num_params(config.model)
    moments = {"adamw": 2, "sgd": 1 if config.optimizer.momentum else 0}[config.optimizer.name]
    place = out_dir.absolute()
    while not place.exists():
        place = place.parent
    return TrainPlan(
        config=config,
        out_dir=out_dir,
        resumes_at=None if state is None else state.step,
        steps=steps,
        updates=steps * config.updates_per_step,
        answers=0 if config.algorithm.spec.is_supervised else steps * config.batch * config.sampling.rollouts,
        checkpoints=(() if state else (0,)) + checkpoints,
        num_params=num_params,
        checkpoint_bytes=None if num_params is None else _ITEM_BYTES * num_params,
        optimizer_bytes=None if num_params is None else moments * _ITEM_BYTES * num_params,
        free_bytes=shutil.disk_usage(place).free,
    )


def _checkpoints(config: TrainConfig, state: TrainState) -> Iterator[int]:
    """Give the virtual steps at which checkpoints will be written, as legs and jumps make them."""
    extra, every = config.extra, config.optimizer.reset_every
    virtual_step, leg_steps = state.virtual_step, state.leg_steps
    for step in range(state.step, config.steps):
        if extra is not None and leg_steps == extra.m:
            leg_steps = 0
            if extra.n:
                virtual_step += extra.n
                yield virtual_step
        virtual_step += 1
        leg_steps += 1
        ends_stretch = (
            step + 1 == config.steps
            or (extra is not None and leg_steps == extra.m)
            or (every and (step + 1) % every == 0)
        )
        if ends_stretch or leg_steps % config.save_every == 0:
            yield virtual_step


def _num_params(model: str) -> int | None:
    path = Path(model)
    if not path.is_dir() or not has_weights(path):
        return None
    checkpoint = HuggingFaceCheckpoint(path)
    try:
        return sum(tensor.num_params for tensor in checkpoint.tensors.values() if is_fitted(tensor.dtype))
    finally:
        checkpoint.close()
