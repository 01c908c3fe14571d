"""What trains: the Protocol that engines implement, and the state that goes from one stretch to the next.

An engine knows steps, weights and rewards, and nothing of RL-Extra: legs and jumps are made around it, in
`ckptlin.rl.trainer`.  Its resume points lie in the run's directory, see `ckptlin.rl.run_directory`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ckptlin.errors import SelectionError
from ckptlin.problems import Problem
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.sampled_rewards import SampledRewards
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepListener

__all__ = ["Engine", "SampledRewards", "open_engine"]


class Engine(Protocol):
    """Trains a model for a number of steps."""

    name: str

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and tells the user."""
        ...

    def wait(self) -> None:
        """Wait until all processes are here."""
        ...

    def check(self, config: TrainConfig) -> None:
        """Raise what would make training fail later: a missing package, a tokenizer without an end, ...

        Raises
        ------
        MissingExtraError
            If a package that the engine needs is not installed.
        InputError
            If the configuration cannot be trained.
        """
        ...

    def start(self, config: TrainConfig, run: RunDirectory) -> TrainState:
        """Write checkpoint 0 and the resume point of step 0."""
        ...

    def train(
        self, config: TrainConfig, state: TrainState, steps: int, *, run: RunDirectory, listener: StepListener
    ) -> TrainState:
        """Train for ``steps`` steps from ``state``, and return where that ends.

        Checkpoints and resume points are written every ``config.save_every`` steps of the leg, and at its end.

        Raises
        ------
        TrainingStoppedError
            If rewards or losses are no longer numbers, or the reward collapsed; the last resume point stands.
        """
        ...

    def sample(
        self, config: TrainConfig, weights: Path, problems: Sequence[Problem], *, num_samples: int, seed: int
    ) -> SampledRewards:
        """Answer problems by the model in a directory, and grade the answers."""
        ...


def open_engine(name: str, *, progress: Progress = NO_PROGRESS) -> Engine:
    """Return an engine by name; its packages load when it is used, and ``progress`` takes what it notes."""
    if name == "trl":
        from ckptlin.rl.trl.engine import TrlEngine

        return TrlEngine(progress)
    if name == "verl":
        from ckptlin.rl.verl.engine import VerlEngine

        return VerlEngine(progress=progress)
    raise SelectionError(f"no engine `{name}`; there are {', '.join(TrainConfig.ENGINES)}")
