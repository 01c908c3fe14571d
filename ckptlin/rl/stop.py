"""When a run that goes wrong stops by itself: figures that are no numbers, and a reward that collapses.

Everything written before stands; what a stop says is which figures, what is kept and how to go on.
"""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ckptlin.errors import TrainingStoppedError
from ckptlin.rl.config import StopConfig
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.state import JumpRecord
from ckptlin.rl.step_log import StepRow, read_log

__all__ = ["StopRule"]

_WATCHED = {"reward": "reward", "loss": "loss", "grad_norm": "gradient norm"}


class StopRule:
    """Watches the steps of a run; a `StepListener`.

    The mean reward of the last ``window`` steps is compared with the best such mean so far, over the steps of
    earlier starts too.  Means are in float64; a step without a reward (supervised training) counts for nothing.

    Parameters
    ----------
    stop : StopConfig
    run : RunDirectory, optional
        Where ``log.csv`` is read for the steps before this start, and what the sentence names.
    """

    def __init__(self, stop: StopConfig, *, run: RunDirectory | None = None) -> None:
        self._stop = stop
        self._run = run
        self._past: Sequence[StepRow] = () if run is None else read_log(run.log_path)
        self._rewards: deque[float] = deque(maxlen=stop.window)
        self._best: tuple[float, StepRow] | None = None

    def on_step(self, row: StepRow) -> None:
        """Take a step.

        Raises
        ------
        TrainingStoppedError
            If its reward, loss or gradient norm is NaN or infinite, or the reward has collapsed.
        """
        for earlier in self._past:
            if earlier.step < row.step:  # later ones are made again
                self._add(earlier)
        self._past = ()
        wrong = {
            words: value
            for name, words in _WATCHED.items()
            if (value := getattr(row, name)) is not None and not math.isfinite(value)
        }
        if wrong:
            what = " and ".join(f"the {words} is {value}" for words, value in wrong.items())
            raise TrainingStoppedError(
                f"training stopped at step {row.step}: {what}; {self._kept()}; the same command would come to "
                f"the same point, so train on from {self._latest() or 'the last checkpoint'} in another "
                "directory, with a lower optimizer.lr"
            )
        mean = self._add(row)
        if mean is None or self._best is None:
            return
        best, at = self._best
        if mean < self._stop.collapse * best:
            window = self._stop.window
            raise TrainingStoppedError(
                f"training stopped at step {row.step}: the reward collapsed, its mean over the last {window} "
                f"steps is {mean:.3g}, less than {self._stop.collapse:g} of the best such mean, {best:.3g} at "
                f"step {at.step}; {self._kept()}{self._from_best_time(at)}; --set stop.collapse=0 goes on all "
                "the same"
            )

    def on_checkpoint(self, virtual_step: int, path: Path) -> None:
        """Nothing to watch."""

    def on_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Nothing to watch; a jump that harms shows in the rewards of the steps after it."""

    def _add(self, row: StepRow) -> float | None:
        """Add a step's reward, and return the mean over the window once that is full."""
        if row.reward is None or not math.isfinite(row.reward):
            return None
        self._rewards.append(row.reward)
        if len(self._rewards) < self._stop.window:
            return None
        # Summed anew each time: a running sum would come out otherwise after a restart.
        mean = math.fsum(self._rewards) / len(self._rewards)
        if self._best is None or mean > self._best[0]:
            self._best = mean, row
        return mean

    def _latest(self) -> Path | None:
        state = None if self._run is None else self._run.latest()
        return None if self._run is None or state is None else self._run.checkpoint(state.virtual_step)

    def _kept(self) -> str:
        state = None if self._run is None else self._run.latest()
        if state is None:
            return "the last checkpoint and resume point are kept"
        return (
            f"all checkpoints are kept, the last is {self._latest()}, and the resume point of step {state.step}"
        )

    def _from_best_time(self, best: StepRow) -> str:
        """Name the checkpoint that stands at or before the best mean's last step, if there is one."""
        if self._run is None:
            return ""
        steps = [
            int(path.name.removeprefix("checkpoint-"))
            for path in self._run.path.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdecimal()
        ]
        earlier = [step for step in steps if step <= best.virtual_step]
        if not earlier:
            return ""
        return f", and {self._run.checkpoint(max(earlier))} is from its best time"
