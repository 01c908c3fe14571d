"""What verl says of its steps, read while it writes: a line of JSON a step, after the step's checkpoint."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptlin.errors import CkptlinError
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepRow

__all__ = ["MetricsFile", "num_generated", "step_row"]


class MetricsFile:
    """The file of verl's logger ``file``; read again and again, each line is given once.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = 0

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give verl's number of each new step, and its figures; an unfinished line is left for later."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._begin)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._begin += len(line)
                entry = json.loads(line)
                yield entry["step"], entry["data"]


def num_generated(config: TrainConfig, figures: Mapping[str, Any]) -> int:
    """Return the tokens of all answers of a step."""
    mean = _number(figures, "response_length/mean")
    return round(mean * config.batch * config.sampling.rollouts) if math.isfinite(mean) else 0


def step_row(
    config: TrainConfig, state: TrainState, figures: Mapping[str, Any], *, tokens_per_s: float
) -> StepRow:
    """Return the row of a step.

    Parameters
    ----------
    config : TrainConfig
    state : TrainState
        After the step.
    figures : mapping of str to float
        verl's, of `MetricsFile`; a null stands for NaN.
    tokens_per_s : float

    Raises
    ------
    CkptlinError
        If verl says nothing of what every step has.
    """
    # verl takes these means as it takes the loss's, and only two of the ways give a figure per token.
    per_token = config.algorithm.spec.loss_mean != "constant-length"
    # "Clipped" are for verl the longest answers of the batch, also where none reached the limit.
    reached = _number(figures, "response_length/max") >= config.sampling.max_completion_tokens
    return StepRow(
        step=state.step,
        virtual_step=state.virtual_step,
        updates=state.updates,
        reward=_number(figures, "critic/score/mean"),
        reward_std=None,
        length=_number(figures, "response_length/mean"),
        truncated=_number(figures, "response_length/clip_ratio") if reached else 0.0,
        entropy=_number(figures, "actor/entropy") if per_token else None,
        clip_share=_number(figures, "actor/pg_clipfrac"),
        kl_start=_number(figures, "actor/kl_loss") if per_token and "actor/kl_loss" in figures else None,
        loss=_number(figures, "actor/loss"),
        grad_norm=_number(figures, "actor/grad_norm"),
        lr=_number(figures, "actor/lr"),
        tokens=state.tokens,
        tokens_per_s=tokens_per_s,
        elapsed_s=state.elapsed_s,
    )


def _number(figures: Mapping[str, Any], name: str) -> float:
    try:
        value = figures[name]
    except KeyError:
        raise CkptlinError(
            f"verl wrote no figure `{name}` of a step; those of verl 0.9.1 are read, so install that version"
        ) from None
    # Numbers that JSON has no word for are written as null.
    return math.nan if value is None else float(value)
