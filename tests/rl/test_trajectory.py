"""A trajectory store that grows while a run trains: what is in it, and what happens when it cannot."""

import csv
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from ckptlin.errors import StepConflictError, StoreLockedError
from ckptlin.progress import NO_PROGRESS
from ckptlin.rl.config import LogConfig, RlExtraConfig
from ckptlin.rl.run_directory import open_run
from ckptlin.rl.trainer import train
from ckptlin.rl.trajectory import R2SoFar, StoreAppender, TrajectoryListener, append_to_store, read_r2
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import StoreWriter
from tests.rl_runs import tiny_config
from tests.run_directories import CONFIG, VERSIONS
from tests.runs import assert_holds, file_contents, save_checkpoint, weights_at
from tests.tiny_models import load_weights

MODEL = {"w": ((30, 4), np.float32), "v": ((7,), np.float32)}
SILENT = replace(CONFIG, log=LogConfig(tensorboard=False))


class Notes:
    """Takes what is said."""

    def __init__(self):
        self.said = []

    def phase(self, title, num_bytes):
        return NO_PROGRESS.phase(title, num_bytes)

    def note(self, message):
        self.said.append(message)


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", SILENT, versions=VERSIONS) as run:
        yield run


def add(run, listener, step, weights=None):
    """Save a checkpoint and tell the listener."""
    path = save_checkpoint(run.checkpoint(step), weights_at(step, MODEL) if weights is None else weights)
    listener.on_checkpoint(step, path)


def r2_of(by_step):
    """R² of every parameter that moves, in float64: Pearson's r, squared."""
    steps = np.array(sorted(by_step), float)
    found = []
    for name in by_step[int(steps[0])]:
        values = np.stack([by_step[int(step)][name].astype(np.float64).ravel() for step in steps])
        for column in values.T:
            if np.ptp(column) > 0:
                found.append(np.corrcoef(steps, column)[0, 1] ** 2)
    return np.array(found)


def assert_tells(figures, by_step):
    expected = r2_of(by_step)
    # The median comes out of a histogram of a thousand bins.
    assert figures.median == pytest.approx(np.median(expected), abs=2e-3)
    assert figures.above_7 == pytest.approx(np.mean(expected > 0.7), abs=1e-9)
    assert 0 < figures.null_median < 1
    assert 0 < figures.null_above_7 < 1
    assert (figures.first_step, figures.step) == (min(by_step), max(by_step))
    assert figures.num_checkpoints == len(by_step)


def test_checkpoints_are_appended_as_they_are_saved_and_r2_is_told(run, tmp_path):
    store = tmp_path / "store"
    by_step = {}
    with TrajectoryListener(store, run) as listener:
        for step in (0, 10, 20, 30):
            by_step[step] = weights_at(step, MODEL)
            add(run, listener, step)
            assert_holds(TrajectoryStore(store), by_step)
            rows = read_r2(run.path / "r2.csv")
            assert [row.step for row in rows] == [s for s in by_step if s >= 20]
            if rows:
                assert_tells(rows[-1], by_step)
    with (run.path / "r2.csv").open(newline="") as file:
        assert [row["num_checkpoints"] for row in csv.DictReader(file)] == ["3", "4"]


def test_r2_is_of_the_checkpoints_since_the_last_jump(run, tmp_path):
    with TrajectoryListener(tmp_path / "store", run) as listener:
        for step in (0, 10, 20):
            add(run, listener, step)
        run.note(jumps=[{"from": 20, "to": 40, "method": "two-point", "step": 20}])
        for step in (40, 50, 60):
            add(run, listener, step)
    rows = read_r2(run.path / "r2.csv")
    assert [(row.first_step, row.step) for row in rows] == [(0, 20), (40, 60)]
    assert_tells(rows[-1], {step: weights_at(step, MODEL) for step in (40, 50, 60)})
    assert [jump.to_step for jump in TrajectoryStore(tmp_path / "store").jumps] == [40]


def test_what_was_made_again_with_the_same_bytes_is_left_alone(run, tmp_path):
    """A kill between a save and its resume point: the store is ahead, and the run catches up."""
    notes = Notes()
    store = tmp_path / "store"
    with TrajectoryListener(store, run, progress=notes) as listener:
        for step in (0, 10, 20, 30):
            add(run, listener, step)
    before = file_contents(store)
    shutil.rmtree(run.checkpoint(30))
    shutil.rmtree(run.checkpoint(20))
    with TrajectoryListener(store, run, progress=notes) as listener:
        add(run, listener, 20)
        assert file_contents(store) == before
        add(run, listener, 30)
        assert file_contents(store) == before
        add(run, listener, 40)
    assert notes.said == []
    assert TrajectoryStore(store).steps == (0, 10, 20, 30, 40)
    assert [row.step for row in read_r2(run.path / "r2.csv")] == [20, 30, 40]


def test_other_bytes_at_a_step_are_told_and_nothing_more_is_appended(run, tmp_path):
    notes = Notes()
    store = tmp_path / "store"
    with TrajectoryListener(store, run) as listener:
        for step in (0, 10, 20):
            add(run, listener, step)
    before = file_contents(store)
    shutil.rmtree(run.checkpoint(20))
    with TrajectoryListener(store, run, progress=notes) as listener:
        add(run, listener, 20, weights_at(21, MODEL))
        add(run, listener, 30)
    assert file_contents(store) == before
    (said,) = notes.said
    assert said.startswith(f"checkpoint 20 and those after it are not appended to {store}: step 20 is in")
    assert said.endswith("training goes on, and `ckptlin ingest` makes another store of the run")


def test_a_store_that_has_steps_which_the_run_has_not_come_to_is_left_as_it_is(run, tmp_path):
    """A jump to 40 that was taken back after a kill: training goes on from 20, to 30."""
    notes = Notes()
    store = tmp_path / "store"
    with TrajectoryListener(store, run) as listener:
        for step in (0, 10, 20, 40):
            add(run, listener, step)
    before = file_contents(store)
    shutil.rmtree(run.checkpoint(40))
    with TrajectoryListener(store, run, progress=notes) as listener:
        for step in (30, 40, 50):
            add(run, listener, step)
    assert file_contents(store) == before
    (said,) = notes.said
    assert "holds step 40, and would have to be built anew to take in step 30" in said


def test_a_store_of_another_model_is_left_as_it_is(run, tmp_path):
    notes = Notes()
    append_to_store(save_checkpoint(tmp_path / "other/checkpoint-0", weights_at(0)), tmp_path / "store")
    with TrajectoryListener(tmp_path / "store", run, progress=notes) as listener:
        add(run, listener, 10)
        add(run, listener, 20)
    assert len(notes.said) == 1
    assert "different models into different stores" in notes.said[0]


def test_a_failure_is_told_each_time_and_what_is_missing_comes_later(run, tmp_path):
    notes = Notes()
    store = tmp_path / "store"
    with TrajectoryListener(store, run, progress=notes) as listener:
        add(run, listener, 0)
        with StoreWriter(str(store), fresh=False):  # another process has it
            add(run, listener, 10)
            add(run, listener, 20)
        assert len(notes.said) == 2
        assert all(
            "could not be appended" in said and "the next save tries again" in said for said in notes.said
        )
        assert "checkpoint 10" in notes.said[0]
        add(run, listener, 30)
    assert len(notes.said) == 2
    assert TrajectoryStore(store).steps == (0, 10, 20, 30)


def test_weights_that_are_no_numbers_are_stored_and_told(run, tmp_path):
    notes = Notes()
    with TrajectoryListener(tmp_path / "store", run, progress=notes) as listener:
        for step in (0, 10):
            add(run, listener, step)
        weights = weights_at(20, MODEL)
        weights["w"][0] = np.nan
        add(run, listener, 20, weights)
    assert TrajectoryStore(tmp_path / "store").steps == (0, 10, 20)
    assert len(notes.said) == 1
    assert "`w`" in notes.said[0]


def test_a_mistake_in_the_program_is_not_swallowed(tmp_path):
    with pytest.raises(TypeError):
        StoreAppender(tmp_path / "store", tmp_path / "r2.csv", note=print).append(5, 0)


def test_a_damaged_table_is_told_and_not_replaced(run, tmp_path):
    notes = Notes()
    (run.path / "r2.csv").write_text("a,b\n1,2\n")
    with TrajectoryListener(tmp_path / "store", run, progress=notes) as listener:
        for step in (0, 10, 20):
            add(run, listener, step)
    assert (run.path / "r2.csv").read_text() == "a,b\n1,2\n"
    assert "is no table of R²" in notes.said[0]


def test_errors_of_a_single_append_are_raised(tmp_path):
    for step in (0, 20):
        append_to_store(
            save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights_at(step)), tmp_path / "store"
        )
    earlier = save_checkpoint(tmp_path / "run/checkpoint-10", weights_at(10))
    with pytest.raises(StepConflictError, match="step 10, which lies before it"):
        append_to_store(earlier, tmp_path / "store")
    with StoreWriter(str(tmp_path / "store"), fresh=False), pytest.raises(StoreLockedError):
        append_to_store(save_checkpoint(tmp_path / "run/checkpoint-30", weights_at(30)), tmp_path / "store")


def test_r2_is_told_in_a_sentence():
    figures = R2SoFar(30, 0, 4, 0.912, 0.436, 0.807, 0.263)
    assert str(figures) == (
        "R² so far, 4 checkpoints: median 0.91 (random walks 0.44), above 0.7 81% (random walks 26%)"
    )
    assert str(R2SoFar(30, 0, 4, None, None, None, None)) == "R² so far, 4 checkpoints: no parameter has moved"


def test_a_run_that_names_a_store_fills_it_and_shows_r2_in_tensorboard(tiny_model, tmp_path):
    """RL-Extra, with a restart in the middle: the store is what an ingest of the run makes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from ckptlin.ingest import ingest

    notes = Notes()
    config = tiny_config(
        tiny_model,
        steps=4,
        save_every=1,
        extra=RlExtraConfig(m=4, n=4),
        log=LogConfig(store=str(tmp_path / "store")),
    )
    train(config, tmp_path / "run", progress=notes)
    train(replace(config, steps=8), tmp_path / "run", progress=notes)
    assert notes.said == []
    store = TrajectoryStore(tmp_path / "store")
    assert store.steps == (0, 1, 2, 3, 4, 8, 9, 10, 11, 12)
    assert [(jump.from_step, jump.to_step) for jump in store.jumps] == [(4, 8)]
    again = ingest(tmp_path / "run", tmp_path / "again").store
    assert [c.fingerprint for c in store.checkpoints] == [c.fingerprint for c in again.checkpoints]
    rows = read_r2(tmp_path / "run/r2.csv")
    assert [(row.first_step, row.step) for row in rows] == [(0, 2), (0, 3), (0, 4), (8, 10), (8, 11), (8, 12)]
    by_step = {step: load_weights(tmp_path / f"run/checkpoint-{step}") for step in (8, 9, 10, 11, 12)}
    assert_tells(rows[-1], by_step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own
        shown = EventAccumulator(str(tmp_path / "run/tensorboard/trajectory"))
        shown.Reload()
    for name in ("median", "null_median", "above_7", "null_above_7"):
        events = shown.Scalars(f"r2/{name}")
        assert [event.step for event in events] == [row.step for row in rows]
        assert [event.value for event in events] == pytest.approx([getattr(row, name) for row in rows])
    record = json.loads((tmp_path / "run/ckptlin-train.json").read_text())
    assert record["finished"]
