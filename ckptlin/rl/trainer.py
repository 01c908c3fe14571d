"""Training, plain or by RL-Extra: legs of real steps by an engine, and a jump after each.

RL-Extra(m, n) trains m steps from w_a to w_b and goes on from where a method, by default the paper's two-point
rule w_a + ((m+n)/m)(w_b − w_a), predicts the weights n steps later (arXiv 2601.04537).  No jump follows the
last leg: a run ends with weights that were trained.

Everything that decides what comes next is in the resume point, so that a run that was killed at any instant
goes on as if nothing had happened.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptlin.errors import GradingError, TrainingStoppedError
from ckptlin.problems import load_problems
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.rl.config import RlExtraConfig, TrainConfig
from ckptlin.rl.engine import Engine, open_engine
from ckptlin.rl.guard import GuardVerdict, choose_problems, compare
from ckptlin.rl.jump import Landing, choose_landing, predicted
from ckptlin.rl.run_directory import RunDirectory, link_model, open_run
from ckptlin.rl.state import JumpRecord, TrainState
from ckptlin.rl.step_log import Listeners, StepListener, StepLog, check_log
from ckptlin.rl.stop import StopRule
from ckptlin.rl.trajectory import TrajectoryListener
from ckptlin.versions import installed_versions

__all__ = ["TrainResult", "train"]

_VERSIONS = ("torch", "transformers", "trl", "verl", "accelerate", "numpy")


@dataclass(frozen=True)
class TrainResult:
    """A run that was trained to its end.

    Attributes
    ----------
    out_dir : Path
    state : TrainState
        Where it ended.
    jumps, jumps_undone : tuple of dict
        As in ``ckptlin-train.json``.
    resumed_from : int or None
        Real step that this call went on from; None for a new run.
    elapsed_s : float
        Of this call.
    """

    out_dir: Path
    state: TrainState
    jumps: tuple[dict[str, Any], ...]
    jumps_undone: tuple[dict[str, Any], ...]
    resumed_from: int | None
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "out": str(self.out_dir),
            **self.state.to_dict(),
            "jumps": list(self.jumps),
            "jumps_undone": list(self.jumps_undone),
            "resumed_from": self.resumed_from,
            "call_elapsed_s": self.elapsed_s,
        }


def train(
    config: TrainConfig,
    out_dir: Path,
    *,
    overwrite: bool = False,
    listeners: Sequence[StepListener] = (),
    progress: Progress = NO_PROGRESS,
) -> TrainResult:
    """Train a run to its last step, from its last resume point if there is one.

    Parameters
    ----------
    config : TrainConfig
    out_dir : Path
        Directory of the run; see `ckptlin.rl.run_directory`.
    overwrite : bool
        Start over if a run is there.
    listeners : sequence of StepListener
        Told of every step, checkpoint and jump, in the main process.
    progress : Progress
        Takes notes.

    Raises
    ------
    InputError
        If the model, data, grader or settings cannot be trained, or the run that is there has other settings.
    OutputExistsError
        If something else than a run is there.
    MissingExtraError
        If a package is not installed.
    TrainingStoppedError
        If training went wrong; what was saved last is kept.
    DiskFullError
        If a checkpoint or resume point could not be written; the one before is kept.
    """
    start = time.perf_counter()
    engine = open_engine(config.engine, progress=progress)
    engine.check(config)
    check_log(config.log)
    with ExitStack() as stack:
        is_main = engine.is_main
        run = stack.enter_context(
            open_run(
                out_dir,
                config,
                overwrite=overwrite,
                is_main=is_main,
                versions=installed_versions(_VERSIONS),
            )
        )
        engine.wait()
        state = run.latest()
        resumed_from = None if state is None else state.step
        if state is None:
            state = engine.start(config, run)
        elif is_main:
            run.rewind(state)
        engine.wait()
        told: list[StepListener] = []
        if is_main:
            told = [stack.enter_context(StepLog(run, state)), *listeners]
            if config.log.store is not None:
                told.append(stack.enter_context(TrajectoryListener(config.log.store, run, progress=progress)))
            # Last, so that all are told of the step that it stops at; after the log, which it reads.
            told.append(StopRule(config.stop, run=run))
        listener = Listeners(told)
        while True:
            if _ends_leg(config, state):
                state = _end_leg(config, state, run=run, engine=engine, listener=listener, progress=progress)
            if state.step >= config.steps:
                break
            if config.optimizer.reset_every and state.step % config.optimizer.reset_every == 0:
                state = replace(state, fresh_optimizer=True)
            steps = _steps_to_train(config, state)
            state = engine.train(config, state, steps, run=run, listener=listener)
        if is_main:
            run.note(finished=True, step=state.step, virtual_step=state.virtual_step)
        record = run.record
    return TrainResult(
        out_dir=out_dir,
        state=state,
        jumps=tuple(record["jumps"]),
        jumps_undone=tuple(record["jumps_undone"]),
        resumed_from=resumed_from,
        elapsed_s=time.perf_counter() - start,
    )


def _ends_leg(config: TrainConfig, state: TrainState) -> bool:
    return config.extra is not None and state.leg_steps == config.extra.m and state.step < config.steps


def _steps_to_train(config: TrainConfig, state: TrainState) -> int:
    """Return how many steps an engine may train before something else is to be done."""
    steps = config.steps - state.step
    if config.extra is not None:
        return min(steps, config.extra.m - state.leg_steps)
    if every := config.optimizer.reset_every:
        return min(steps, every - state.step % every)
    return steps


def _end_leg(
    config: TrainConfig,
    state: TrainState,
    *,
    run: RunDirectory,
    engine: Engine,
    listener: Listeners,
    progress: Progress,
) -> TrainState:
    if engine.is_main and config.extra is not None:
        if config.extra.n == 0:
            _begin_leg(run, state, resets=config.extra.optimizer == "reset")
        else:
            _jump(config, config.extra, state, run=run, engine=engine, listener=listener, progress=progress)
    engine.wait()
    following = run.latest()  # what a new start would find
    return state if following is None else following


def _begin_leg(run: RunDirectory, state: TrainState, *, resets: bool, **changes: Any) -> TrainState:
    virtual_step = changes.get("virtual_step", state.virtual_step)
    fresh = resets or state.fresh_optimizer
    return run.after_jump(state, **changes, leg_start=virtual_step, leg_steps=0, fresh_optimizer=fresh)


def _jump(
    config: TrainConfig,
    extra: RlExtraConfig,
    state: TrainState,
    *,
    run: RunDirectory,
    engine: Engine,
    listener: Listeners,
    progress: Progress,
) -> None:
    start = time.perf_counter()
    landing = choose_landing(run, state, n=extra.n, method=extra.method)
    verdict: GuardVerdict | None = None
    undone = landing.to_step == state.virtual_step
    with ExitStack() as stack:
        if not undone:
            weights = stack.enter_context(predicted(run, state, landing, method=extra.method))
            if extra.guard.enabled:
                try:
                    verdict = _guard(config, extra, state, weights, run=run, engine=engine)
                except GradingError as error:
                    raise TrainingStoppedError(
                        f"the jump after step {state.step} could not be judged: {error}; {run.path} stands "
                        "before it, and goes on from there when the same command is given again"
                    ) from error
                undone = verdict.undoes
        jump = _record(extra, state, landing, verdict, time.perf_counter() - start)
        # The record first: whoever sees the checkpoint knows that a jump leads to it.
        run.note_jump(jump, undone=undone)
        if not undone:
            with run.new_checkpoint(landing.to_step) as path:
                link_model(weights, path)
    spent = {"tokens": state.tokens + jump.tokens, "elapsed_s": state.elapsed_s + time.perf_counter() - start}
    if undone:
        # As if it had not been tried: the optimizer goes on as well.
        _begin_leg(run, state, resets=False, **spent)
        progress.note(_why_not(jump))
    else:
        resets = extra.optimizer == "reset"
        _begin_leg(run, state, resets=resets, virtual_step=landing.to_step, **spent)
        listener.on_checkpoint(landing.to_step, run.checkpoint(landing.to_step))
    listener.on_jump(jump, undone=undone)


def _guard(
    config: TrainConfig,
    extra: RlExtraConfig,
    state: TrainState,
    weights: Path,
    *,
    run: RunDirectory,
    engine: Engine,
) -> GuardVerdict:
    guard = extra.guard
    problems = choose_problems(load_problems(config.data.held_out or ""), guard.num_problems, seed=config.seed)
    before, after = (
        engine.sample(config, path, problems, num_samples=guard.num_samples, seed=config.seed + state.step)
        for path in (run.checkpoint(state.virtual_step), weights)
    )
    return compare(before, after, z=guard.z)


def _record(
    extra: RlExtraConfig, state: TrainState, landing: Landing, verdict: GuardVerdict | None, elapsed_s: float
) -> JumpRecord:
    return JumpRecord(
        from_step=state.virtual_step,
        to_step=landing.to_step,
        step=state.step,
        method=landing.method,
        leg=landing.leg,
        wanted=state.virtual_step + extra.n,
        guard=None if verdict is None else verdict.to_dict(),
        elapsed_s=elapsed_s,
        tokens=0 if verdict is None else verdict.tokens,
        reason=landing.reason,
    )


def _why_not(jump: JumpRecord) -> str:
    if jump.guard is None:
        return f"no jump after step {jump.step}: {jump.reason}"
    return (
        f"the jump to virtual step {jump.to_step} was undone: the reward on held-out problems fell from "
        f"{jump.guard['before']:.3f} to {jump.guard['after']:.3f} (standard error "
        f"{jump.guard['standard_error']:.3f})"
    )
