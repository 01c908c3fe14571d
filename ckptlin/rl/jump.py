"""The jump of RL-Extra: where a leg's own checkpoints say that the weights are going.

The weights are those that ``ckptlin extrapolate RUN --steps LEG --step TARGET --dtype float32`` writes, by the
same function, block by block: no state dict is held in memory.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptlin.backtest import backtest, choose
from ckptlin.extrapolate import extrapolate
from ckptlin.extrapolate_plan import AUTO
from ckptlin.gram import gram
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.state import TrainState
from ckptlin.selection import select_rows
from ckptlin.source import open_source

__all__ = ["Landing", "choose_landing", "predicted"]

# Hidden and partial: no reader takes it for a checkpoint, and after a kill it is swept.
_LANDING = ".landing.partial"


@dataclass(frozen=True)
class Landing:
    """Where a jump leads.

    Attributes
    ----------
    to_step : int
        Virtual step; the one it starts from where the leg's past supports no jump.
    method : str
    leg : tuple of int
        Steps of the checkpoints that it is predicted from.
    reason : str
        Why ``auto`` chose so; empty otherwise.
    """

    to_step: int
    method: str
    leg: tuple[int, ...]
    reason: str


def choose_landing(run: RunDirectory, state: TrainState, *, n: int, method: str) -> Landing:
    """Say where a leg that has ended jumps to.

    ``auto`` goes as far as the leg's own backtest supports: to the furthest step, at most n away, whose reach a
    prediction of the leg's past had and at which the method chosen had a positive mean skill.
    """
    wanted = state.virtual_step + n
    window = f"{state.leg_start}:{state.virtual_step}"
    source = open_source(run.path)
    leg = tuple(source.steps[row] for row in select_rows(source.steps, window))
    if method != AUTO:
        return Landing(wanted, method, leg, "")
    past = backtest(gram(source, steps=window, keep=False))
    reason = ""
    for target in range(wanted, state.virtual_step, -1):
        verdict = choose(past, target)
        reason = reason or verdict.reason
        expected = verdict.expected
        if verdict.is_tested and expected is not None and expected.mean > 0.0:
            return Landing(target, str(verdict.method), leg, verdict.reason)
    why = f"no prediction of the leg's past was better than its last checkpoint: {reason}"
    return Landing(state.virtual_step, AUTO, leg, why)


@contextmanager
def predicted(run: RunDirectory, state: TrainState, landing: Landing, *, method: str) -> Iterator[Path]:
    """Give the checkpoint that a jump lands on, in a directory that is gone afterwards."""
    out_dir = run.path / _LANDING
    shutil.rmtree(out_dir, ignore_errors=True)
    extrapolate(
        open_source(run.path),
        landing.to_step,
        out_dir,
        method=landing.method,
        steps=f"{landing.leg[0]}:{landing.leg[-1]}",
        # What `auto` chooses was judged without any pattern.
        keep=() if method == AUTO else None,
        dtype="float32",
    )
    try:
        yield out_dir
    finally:
        shutil.rmtree(out_dir)
