"""Where a training run stands between two steps, and the moves that RL-Extra makes between legs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ckptlin.errors import CheckpointError

__all__ = ["STATE_NAME", "JumpRecord", "TrainState"]

STATE_NAME = "state.json"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands, at a boundary between two batches of rollouts.

    Attributes
    ----------
    path : Path
        Directory of the resume point: weights in float32, optimizer, scheduler, random numbers.
    step : int
        Real steps done: the position in the data.
    virtual_step : int
        Real steps and jumps together: what the checkpoints are named by.
    updates : int
        Updates of the optimizer done.
    tokens : int
        Tokens generated so far, the guard's included.
    elapsed_s : float
        Seconds that training took so far.
    leg_start : int
        Virtual step at which the leg began.
    leg_steps : int
        Real steps of the leg done; the jump follows when they are m.
    fresh_optimizer : bool
        Whether training goes on with an optimizer that remembers nothing.
    """

    path: Path
    step: int = 0
    virtual_step: int = 0
    updates: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    leg_start: int = 0
    leg_steps: int = 0
    fresh_optimizer: bool = True

    def after_step(self, *, updates: int, tokens: int, elapsed_s: float) -> "TrainState":
        """Return the state one real step on, its resume point not written yet.

        Parameters
        ----------
        updates, tokens : int
            Made and generated in the step.
        elapsed_s : float
            Seconds that training took so far.
        """
        return replace(
            self,
            step=self.step + 1,
            virtual_step=self.virtual_step + 1,
            updates=self.updates + updates,
            tokens=self.tokens + tokens,
            elapsed_s=elapsed_s,
            leg_steps=self.leg_steps + 1,
            fresh_optimizer=False,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all but the path as plain data: the content of ``state.json``."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    @classmethod
    def from_dict(cls, path: Path, data: Mapping[str, Any]) -> "TrainState":
        """Make a state of the content of ``state.json``.

        Raises
        ------
        CheckpointError
            If it is none.
        """
        try:
            return cls(path=path, **data)
        except TypeError as error:
            raise CheckpointError(f"{path / STATE_NAME} is no resume point of this version: {error}") from None


@dataclass(frozen=True)
class JumpRecord:
    """A jump: where from, where to, how, and what the guard said.

    Attributes
    ----------
    from_step, to_step : int
        Virtual steps.
    step : int
        Real steps done before it.
    method : str
        As ``--method`` takes it.
    leg : tuple of int
        Steps of the checkpoints that it was predicted from.
    wanted : int
        Virtual step that was asked for; ``auto`` may go less far.
    guard : dict or None
        Mean rewards before and after on held-out prompts, their difference, its standard error and the verdict.
    elapsed_s : float
        Seconds that jump and guard took.
    tokens : int
        Tokens that the guard generated.
    reason : str
        Why ``auto`` chose so; empty otherwise.
    """

    from_step: int
    to_step: int
    step: int
    method: str
    leg: tuple[int, ...]
    wanted: int
    guard: Mapping[str, Any] | None = None
    elapsed_s: float = 0.0
    tokens: int = 0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, with the keys ``from`` and ``to`` that other readers look for."""
        data = asdict(self) | {"leg": list(self.leg)}
        return {"from": data.pop("from_step"), "to": data.pop("to_step"), **data}
