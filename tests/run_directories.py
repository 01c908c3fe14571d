"""A run whose directory is written as the trainer writes it, with contents that are the same for the same step.

Small files stand for weights and optimizers, so that the run can be killed at every operation on files.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptlin.rl.config import DataConfig, RlExtraConfig, TrainConfig
from ckptlin.rl.run_directory import RunDirectory, link_model, open_run
from ckptlin.rl.state import JumpRecord, TrainState

__all__ = ["CONFIG", "VERSIONS", "go_on", "rewind_run", "save", "start", "write_run"]

CONFIG = TrainConfig(
    model="./base",
    steps=8,
    save_every=2,
    data=DataConfig("sums:train"),
    extra=RlExtraConfig(m=4, n=10),
)
VERSIONS = {"torch": "2.13.0"}


def write_model(path: Path, content: object) -> None:
    """Write what stands for a checkpoint."""
    (path / "model.safetensors").write_text(f"weights {content}")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")


def save(run: RunDirectory, state: TrainState) -> TrainState:
    """Write checkpoint and resume point, in the order that makes the second one the one that counts."""
    with run.new_checkpoint(state.virtual_step) as path:
        write_model(path, state.virtual_step)
    state = replace(state, path=run.state_path(state))
    with run.new_state(state) as path:
        (path / "optimizer.pt").write_text(f"moments {state.step}")
        link_model(run.checkpoint(state.virtual_step), path)
    return state


def start(run: RunDirectory) -> TrainState:
    """Write checkpoint 0 and its resume point."""
    return save(run, TrainState(Path()))


def jump(run: RunDirectory, state: TrainState, *, undone: bool) -> TrainState:
    """Jump after a leg, or find that it was no good; both are written down."""
    to_step = state.virtual_step + 10
    record = JumpRecord(state.virtual_step, to_step, state.step, "two-point", (state.leg_start,), to_step)
    run.note_jump(record, undone=undone)
    if undone:
        return run.after_jump(state, leg_start=state.virtual_step, leg_steps=0, fresh_optimizer=True)
    with run.new_checkpoint(to_step) as path:
        write_model(path, to_step)
    return run.after_jump(state, virtual_step=to_step, leg_start=to_step, leg_steps=0, fresh_optimizer=True)


def go_on(run: RunDirectory, state: TrainState, *, last: int = 8) -> TrainState:
    """Train on: a save every 2 steps, a leg of 4, the first jump kept and the second one undone."""
    while state.step < last or state.leg_steps == 4:
        if state.leg_steps == 4:
            state = jump(run, state, undone=state.step == 8)
            continue
        state = replace(
            state,
            step=state.step + 2,
            virtual_step=state.virtual_step + 2,
            updates=state.updates + 4,
            leg_steps=state.leg_steps + 2,
            fresh_optimizer=False,
        )
        state = save(run, state)
    run.note(finished=True)
    return state


def rewind_run(path: str) -> str | None:
    """Open a run that was disturbed, and rewind it to its resume point; return that one's name."""
    with open_run(Path(path), CONFIG, versions=VERSIONS) as run:
        state = run.latest()
        if state is None:
            return None
        run.rewind(state)
        return state.path.name


def write_run(path: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Start the run or go on with it, to its end; return its last state."""
    with open_run(Path(path), CONFIG, overwrite=overwrite, versions=VERSIONS) as run:
        state = run.latest()
        if state is None:
            state = start(run)
        else:
            run.rewind(state)
        return go_on(run, state).to_dict()
