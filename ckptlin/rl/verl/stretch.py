"""What happens around verl's steps in a launch: count, tell, and take what it saved into the run.

verl counts the steps of the leg.  It saves a step before it writes the step's figures, so that whoever has read
those finds the checkpoint whole.
"""

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptlin.checkpoints import HuggingFaceCheckpoint, discover
from ckptlin.errors import CheckpointError, CkptlinError
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.run_directory import RunDirectory, link_model, share_file
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepListener
from ckptlin.rl.verl.metrics import num_generated, step_row

__all__ = ["SHARDS_NAME", "Stretch"]

# In a resume point: verl's checkpoint, without the model for others, which lies beside it.
SHARDS_NAME = "verl"
_INDEX_NAME = "model.safetensors.index.json"
_SAVED = re.compile(r"global_step_([0-9]+)")


class Stretch:
    """One launch of verl.

    Parameters
    ----------
    config : TrainConfig
    state : TrainState
        Where it begins.
    steps : int
        Its length.
    run : RunDirectory
    listener : StepListener
    saved : Path
        Directory that verl saves to, on the disk of the run.
    first : int
        verl's number of the step that it begins after.

    Attributes
    ----------
    state : TrainState
        The last step that was done, its resume point written or not.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        steps: int,
        *,
        run: RunDirectory,
        listener: StepListener,
        saved: Path,
        first: int,
    ) -> None:
        self.state = state
        self._config = config
        self._begin = state
        self._last = state.step + steps
        self._run = run
        self._listener = listener
        self._saved = saved
        self._first = first
        self._started_s = time.perf_counter()

    def take_step(self, number: int, figures: Mapping[str, Any]) -> None:
        """End a step: tell of it, and keep what verl saved where that is due.

        Parameters
        ----------
        number : int
            verl's of the step.
        figures : mapping of str to float

        Raises
        ------
        CkptlinError
            If a step was left out.
        CheckpointError
            If verl's checkpoint cannot be taken.
        """
        before = self.state
        expected = self._first + before.step - self._begin.step + 1
        if number != expected:
            raise CkptlinError(
                f"verl told of its step {number} after step {expected - 1}; see {self._run.path}/verl.log"
            )
        generated = num_generated(self._config, figures)
        self.state = before.after_step(
            updates=self._config.updates_per_step,
            tokens=generated,
            elapsed_s=self._begin.elapsed_s + time.perf_counter() - self._started_s,
        )
        time_s = float(figures.get("perf/time_per_step") or 0.0)
        rate = generated / time_s if time_s > 0 else 0.0
        self._listener.on_step(step_row(self._config, self.state, figures, tokens_per_s=rate))
        if self.state.leg_steps % self._config.save_every == 0 or self.state.step == self._last:
            self._keep(number)
        self._drop(number)

    def _keep(self, number: int) -> None:
        source = self._saved / f"global_step_{number}"
        run, step = self._run, self.state.virtual_step
        with run.new_checkpoint(step) as path:
            _link_weights(source, step, path)
            # Configuration and tokenizer are the start's: verl's copy says bfloat16 beside float32 weights.
            with HuggingFaceCheckpoint(run.checkpoint(0)) as start:
                for name, file in start.sidecars.items():
                    if name != _INDEX_NAME:
                        (path / name).parent.mkdir(exist_ok=True)
                        share_file(Path(str(file)), path / name)
        self.state = replace(self.state, path=run.state_path(self.state))
        with run.new_state(self.state) as path:
            link_model(run.checkpoint(step), path)
            (path / SHARDS_NAME).mkdir()
            (source / "actor").rename(path / SHARDS_NAME / "actor")
            shutil.rmtree(path / SHARDS_NAME / "actor" / "huggingface")
        self._listener.on_checkpoint(step, run.checkpoint(step))

    def _drop(self, number: int) -> None:
        """Remove what verl has saved up to a step: it has been taken, or is not needed."""
        if self._saved.is_dir():
            for path in self._saved.iterdir():
                match = _SAVED.fullmatch(path.name)
                if match and int(match[1]) <= number:
                    shutil.rmtree(path)


def _link_weights(source: Path, step: int, target: Path) -> None:
    """Link the weights that verl saved for others into a checkpoint's directory.

    Raises
    ------
    CheckpointError
        If they are not there, or not in float32.
    """
    with discover(f"{step}={source}") as found:
        (only,) = found.checkpoints
        for spec in only.checkpoint.tensors.values():
            if spec.dtype.is_float and spec.dtype.safetensors != "F32":
                raise CheckpointError(
                    f"tensor `{spec.name}` of verl's checkpoint {source} is of type {spec.dtype.safetensors}, "
                    "but a run is kept in float32 (F32), so that small updates are not rounded away; leave "
                    "verl's dtypes as they are"
                )
        directory = Path(str(only.path))
        names = [file.name for file in only.checkpoint.files]
    if (directory / _INDEX_NAME).is_file():
        names.append(_INDEX_NAME)
    for name in names:
        share_file(directory / name, target / name)
