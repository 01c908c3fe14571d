"""When a run stops by itself, and what it says then."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import TrainingStoppedError
from ckptlin.rl.config import LogConfig, StopConfig
from ckptlin.rl.run_directory import open_run
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepLog
from ckptlin.rl.stop import StopRule
from tests.run_directories import CONFIG, VERSIONS, save, start
from tests.step_rows import row_at

RULE = StopConfig(window=3, collapse=0.5)
SILENT = replace(CONFIG, log=LogConfig(tensorboard=False))


def stops_at(rule, rewards, first=1):
    """Give rewards one by one, and return the step at which it stops, None if it never does."""
    for step, reward in enumerate(rewards, start=first):
        try:
            rule.on_step(row_at(step, reward=reward))
        except TrainingStoppedError:
            return step
    return None


@pytest.mark.parametrize("name", ["reward", "loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_stops_at_once(name, value):
    rule = StopRule(RULE)
    rule.on_step(row_at(1))
    with pytest.raises(
        TrainingStoppedError, match=f"stopped at step 2: the .* is {value}; .*lower optimizer.lr"
    ):
        rule.on_step(row_at(2, **{name: value}))


def test_all_figures_that_are_no_numbers_are_named():
    with pytest.raises(TrainingStoppedError, match="the loss is nan and the gradient norm is inf"):
        StopRule(RULE).on_step(row_at(1, loss=math.nan, grad_norm=math.inf))


def test_figures_that_were_not_taken_stop_nothing():
    rule = StopRule(RULE)
    for step in range(1, 9):
        rule.on_step(row_at(step, reward=None, grad_norm=None, entropy=math.nan))


def test_a_collapse_is_told_with_its_figures():
    rule = StopRule(RULE)
    assert stops_at(rule, [0.2, 0.5, 0.6, 0.7, 0.1, 0.1]) is None
    with pytest.raises(TrainingStoppedError) as stopped:
        rule.on_step(row_at(7, reward=0.1))
    assert str(stopped.value).startswith(
        "training stopped at step 7: the reward collapsed, its mean over the last 3 steps is 0.1, less than "
        "0.5 of the best such mean, 0.6 at step 4; "
    )


def test_a_window_that_is_not_full_stops_nothing():
    assert stops_at(StopRule(StopConfig(window=10, collapse=0.9)), [1.0] * 5 + [0.0] * 4) is None


def test_zero_never_stops():
    assert stops_at(StopRule(StopConfig(window=1, collapse=0)), [1.0, 0.0, 0.0]) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with open_run(tmp_path_factory.mktemp("stop") / "run", SILENT, versions=VERSIONS) as run:
        yield run


@given(
    st.lists(st.floats(0, 1), max_size=30),
    st.integers(1, 6),
    st.floats(0, 0.99),
    st.integers(0, 30),
    st.integers(0, 5),
)
def test_it_stops_where_the_definition_says_also_over_a_restart(run, rewards, window, share, restart, redone):
    means = [np.mean(rewards[end - window : end]) for end in range(window, len(rewards) + 1)]
    expected = next(
        (
            number + window
            for number, mean in enumerate(means)
            # Half a rounding error is left to the order of summation.
            if mean < share * max(means[: number + 1]) - 1e-12
        ),
        None,
    )
    close = any(
        abs(mean - share * max(means[: number + 1])) <= 1e-12 and mean > 0 for number, mean in enumerate(means)
    )
    if close:
        return
    stop = StopConfig(window=window, collapse=share)
    assert stops_at(StopRule(stop), rewards) == expected

    kept = min(restart, len(rewards), *([] if expected is None else [expected - 1]))
    run.log_path.unlink(missing_ok=True)
    with StepLog(run, TrainState(Path())) as log:
        for step in range(1, min(kept + redone, len(rewards)) + 1):
            log.on_step(row_at(step, reward=rewards[step - 1]))
    assert stops_at(StopRule(stop, run=run), rewards[kept:], first=kept + 1) == expected


def test_what_is_kept_is_named(tmp_path):
    with open_run(tmp_path / "run", CONFIG, versions=VERSIONS) as run:
        state = start(run)
        rule = StopRule(StopConfig(window=1, collapse=0.5), run=run)
        for step in range(1, 6):
            rule.on_step(row_at(step, reward=0.9 if step == 3 else 0.6))
            if step % 2 == 0:
                state = save(run, replace(state, step=step, virtual_step=step))
        with pytest.raises(TrainingStoppedError) as stopped:
            rule.on_step(row_at(6, reward=0.1))
        assert f"the last is {run.path}/checkpoint-4, and the resume point of step 4" in str(stopped.value)
        assert f"{run.path}/checkpoint-2 is from its best time" in str(stopped.value)
        assert str(stopped.value).endswith("--set stop.collapse=0 goes on all the same")
        with pytest.raises(TrainingStoppedError, match=f"train on from {run.path}/checkpoint-4 in another"):
            StopRule(RULE, run=run).on_step(row_at(6, loss=math.nan))


def test_checkpoints_and_jumps_are_no_reason_to_stop():
    rule = StopRule(RULE)
    rule.on_checkpoint(10, Path("checkpoint-10"))
    assert stops_at(rule, [0.5] * 10) is None
