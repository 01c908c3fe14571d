"""Sizes of the demo, and the training that they amount to."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ckptlin.demo.corpus import longest_completion
from ckptlin.errors import InputError
from ckptlin.rl.config import DataConfig, LogConfig, OptimizerConfig, RewardConfig, SamplingConfig, TrainConfig

__all__ = ["DemoSettings"]

_NUM_TERMS = 5


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sizes of the demo.

    Attributes
    ----------
    steps : int
        Of the run; each is one batch of answers and one update of the weights.
    save_every : int
        Steps between checkpoints.
    last_seen : int
        The methods see the checkpoints up to this step, and predict that of the last step.
    num_prompts, num_rollouts : int
        Sums of a step, and answers to each.
    lr : float
    num_held_out, num_samples : int
        Sums that checkpoints are compared on, and answers to each.
    """

    steps: int = 300
    save_every: int = 15
    last_seen: int = 150
    num_prompts: int = 32
    num_rollouts: int = 8
    lr: float = 1e-5
    num_held_out: int = 1_000
    num_samples: int = 4

    NUM_SAVES: ClassVar[int] = 20

    def __post_init__(self) -> None:
        if self.steps % self.save_every or self.last_seen % self.save_every:
            raise InputError(
                f"a checkpoint is saved every {self.save_every} steps, and steps ({self.steps}) and last_seen "
                f"({self.last_seen}) must be multiples of that"
            )
        if not 0 < self.last_seen < self.steps:
            raise InputError(f"last_seen ({self.last_seen}) must lie between 0 and steps ({self.steps})")
        if self.num_held_out < 2:
            raise InputError(f"num_held_out is {self.num_held_out}, but a standard error needs at least 2")

    @classmethod
    def of_length(cls, steps: int) -> "DemoSettings":
        """Return the demo of another length, its checkpoints as many as ever and half of them seen.

        Raises
        ------
        InputError
            If the steps cannot be divided so.

        Examples
        --------
        >>> DemoSettings.of_length(60).save_every, DemoSettings.of_length(300) == DemoSettings()
        (3, True)
        """
        if steps < cls.NUM_SAVES or steps % cls.NUM_SAVES:
            raise InputError(
                f"the demo saves {cls.NUM_SAVES} checkpoints at even distances, so --steps must be a multiple "
                f"of {cls.NUM_SAVES}, not {steps}"
            )
        return cls(steps=steps, save_every=steps // cls.NUM_SAVES, last_seen=steps // 2)

    @property
    def saves(self) -> tuple[int, ...]:
        """Steps of the checkpoints, 0 included."""
        return tuple(range(0, self.steps + 1, self.save_every))

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Steps of the checkpoints that answer held-out sums: first, last seen, last, and one between each."""
        last, saves = self.last_seen, self.saves
        between = (
            min(saves, key=lambda step: abs(step - middle)) for middle in (last / 2, (last + self.steps) / 2)
        )
        return tuple(sorted({0, last, self.steps, *between}))

    def train_config(self, model: Path, *, seed: int) -> TrainConfig:
        """Return the configuration of the run."""
        return TrainConfig(
            model=str(model),
            steps=self.steps,
            batch=self.num_prompts,
            mini_batch=self.num_prompts,
            save_every=self.save_every,
            seed=seed,
            device="cpu",
            data=DataConfig("sums:train"),
            reward=RewardConfig("exact"),
            sampling=SamplingConfig(
                rollouts=self.num_rollouts,
                max_prompt_tokens=2 * _NUM_TERMS,
                max_completion_tokens=longest_completion(_NUM_TERMS),
            ),
            optimizer=OptimizerConfig(lr=self.lr),
            log=LogConfig(tensorboard=True),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)
