"""Writers that are killed, or find the disk full, at every one of their operations on files.

The processes are real (see `tests.forked`).  What must hold: a store that was there opens with its previous or
its next content, bit for bit, and the same call afterwards ends with the very bytes of an undisturbed one.
"""

import os
import random
import shutil
import signal
import time

import ml_dtypes
import numpy as np
import pytest

from ckptlin.fit import read_summary
from ckptlin.gram import gram, read_gram
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store.lock import LOCK_FILE
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import JOURNAL
from ckptlin.verify import verify
from tests.runs import assert_holds, file_contents, fit_store, save_checkpoint, weights_at

SMALL = {"w": ((3, 2), ml_dtypes.bfloat16), "scale": ((), np.float64), "empty": ((0,), np.float32)}
# What is in the store before, and what the interrupted ingest adds: to no store; to a row of chunks that is
# filled in part, and beyond it; before the first step, which builds a new store beside the old one.
SCENARIOS = {"new": ((), (1, 2)), "append": (range(20), range(20, 26)), "rebuild": ((10, 20), (5,))}
CHUNK_STEPS = 12
INGEST = "ckptlin.ingest:ingest"


every_few_operations = pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])


class Scene:
    """A store before and after an ingest, and copies of it to be disturbed."""

    def __init__(self, root, before, added, model):
        self.root = root
        self.before = {step: weights_at(step, model) for step in before}
        self.after = self.before | {step: weights_at(step, model) for step in added}
        self.run = root / "run"
        for step, weights in self.before.items():
            save_checkpoint(self.run / f"checkpoint-{step}", weights)
        if before:
            ingest(self.run, root / "base", num_workers=1)
        for step in added:
            save_checkpoint(self.run / f"checkpoint-{step}", self.after[step])
        self.store = self.restore()
        ingest(self.run, self.store, num_workers=1)
        self.undisturbed = self.contents()
        assert verify(TrajectoryStore(self.store)).problems == ()

    def restore(self):
        """Put the store back to what it was before."""
        directory = self.root / "work"
        shutil.rmtree(directory, ignore_errors=True)
        if self.before:
            shutil.copytree(self.root / "base", directory / "store")
        else:
            directory.mkdir()
        return directory / "store"

    def contents(self):
        """Return all files in the store's directory and beside it."""
        files = file_contents(self.root / "work")
        files.pop(f"store/{LOCK_FILE}", None)
        return files

    def without_open_chunks(self, contents=None):
        """Return all files but the chunks that were to be filled up: past the committed steps they hold any."""
        contents = self.contents() if contents is None else contents
        row = len(self.before) // CHUNK_STEPS
        return {name: data for name, data in contents.items() if f"/c/{row}" not in name or not self.before}

    def check_previous_or_next(self):
        """Assert that readers see what was there before or what will be there after, and return which."""
        if not self.store.exists():
            assert not self.before
            return "previous"
        store = TrajectoryStore(self.store)
        which = "previous" if store.steps == tuple(self.before) else "next"
        assert_holds(store, self.before if which == "previous" else self.after)
        return which


@pytest.fixture(scope="module", params=SCENARIOS)
def scene(request, tmp_path_factory):
    return Scene(tmp_path_factory.mktemp(request.param), *SCENARIOS[request.param], SMALL)


def count_operations(scene, forked):
    scene.restore()
    outcome = forked.call(INGEST, scene.run, scene.store, num_workers=1)
    assert outcome.error == ""
    assert scene.contents() == scene.undisturbed
    return outcome.num_operations


@every_few_operations
def test_a_writer_may_be_killed_before_any_operation(scene, forked, stride):
    seen = []
    for operation in range(count_operations(scene, forked), 0, -stride):
        scene.restore()
        outcome = forked.call(INGEST, scene.run, scene.store, num_workers=1, die_at=operation)
        assert outcome.signal == signal.SIGKILL
        seen.append(scene.check_previous_or_next())
        outcome = forked.call(INGEST, scene.run, scene.store, num_workers=1)
        assert (operation, outcome.error, outcome.message) == (operation, "", "")
        assert scene.contents() == scene.undisturbed, f"killed before operation {operation}"
    assert seen == sorted(seen)  # once it is committed, it stays so
    assert set(seen) == {"previous", "next"}


@pytest.mark.parametrize("num_times", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_writers_may_be_killed_again_and_again(scene, forked, num_times):
    num_operations = count_operations(scene, forked)
    choose = random.Random(0)
    for _ in range(num_times):
        scene.restore()
        for _ in range(3):
            forked.call(INGEST, scene.run, scene.store, num_workers=1, die_at=choose.randint(1, num_operations))
            scene.check_previous_or_next()
        outcome = forked.call(INGEST, scene.run, scene.store, num_workers=1)
        assert (outcome.error, outcome.message) == ("", "")
        assert scene.contents() == scene.undisturbed


@every_few_operations
def test_a_disk_that_fills_up_at_any_operation_leaves_what_was_there(scene, forked, stride):
    scene.restore()
    before = scene.contents()
    failed = 0
    for operation in range(1, count_operations(scene, forked) + 1, stride):
        scene.restore()
        outcome = forked.call(INGEST, scene.run, scene.store, num_workers=1, full_at=operation)
        if not outcome.error:  # the directory was there already
            assert scene.contents() == scene.undisturbed
            continue
        if scene.check_previous_or_next() == "next":
            break
        assert (operation, outcome.error) == (operation, "DiskFullError")
        assert "free some space" in outcome.message
        assert scene.without_open_chunks() == scene.without_open_chunks(before), f"full at {operation}"
        failed += 1
    assert failed > 40 // stride


def test_killed_after_finished_chunks_the_next_writer_goes_on_with_them(scene, forked):
    num_operations = count_operations(scene, forked)
    resumed = []
    for operation in range(1, num_operations // 2, 5):
        scene.restore()
        forked.call(INGEST, scene.run, scene.store, num_workers=1, die_at=operation)
        resumed.append(forked.call(INGEST, scene.run, scene.store, num_workers=1).value["resumed_chunks"])
    # Which chunks are noted first is up to the threads that sync them.
    assert resumed[0] == 0
    assert max(resumed) >= 2


def test_a_writer_that_is_killed_at_random_moments_twenty_times(tmp_path, forked):
    """From outside, with syncs to the disk and two workers: at any moment, not only between operations."""
    model = {f"layers.{i}.w": ((40, 3), ml_dtypes.bfloat16) for i in range(12)}
    scene = Scene(tmp_path, range(14), range(14, 20), model)
    scene.restore()
    started = time.perf_counter()
    forked.call(INGEST, scene.run, scene.store, sync=True)
    duration = time.perf_counter() - started
    choose = random.Random(1)
    interrupted = 0
    for _ in range(20):
        scene.restore()
        child = forked.start(INGEST, scene.run, scene.store, sync=True)
        time.sleep(duration * choose.random())
        os.kill(child, signal.SIGKILL)
        forked.finish()
        is_under_way = (scene.store / JOURNAL).exists()
        if scene.check_previous_or_next() == "next":
            duration *= 0.8  # the first run was slower than this one
        elif is_under_way:
            interrupted += 1
        else:
            duration *= 1.2
        outcome = forked.call(INGEST, scene.run, scene.store)
        assert (outcome.error, outcome.message) == ("", "")
        assert scene.contents() == scene.undisturbed
    assert interrupted >= 3


@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fit_that_is_replaced_may_be_killed_before_any_operation(tmp_path, forked, stride):
    """Readers find the former fit or the new one, whole; the next writer sweeps what was left."""
    model = {"w": ((3, 2), ml_dtypes.bfloat16)}
    base, store = tmp_path / "base", tmp_path / "store"
    for step in range(6):
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights_at(step, model))
    ingest([tmp_path / f"run/checkpoint-{step}" for step in range(5)], base, num_workers=1)
    slopes = {}

    def slopes_of(path):
        found = TrajectoryStore(path)
        (block,) = found.blocks("w")
        return found.read_map("default", "slope", block).tolist()

    fit_store(base)
    slopes[5] = slopes_of(base)
    ingest(tmp_path / "run", base, num_workers=1)
    shutil.copytree(base, store)
    fit_store(store)
    slopes[6] = slopes_of(store)
    files = set(file_contents(store))
    assert slopes[5] != slopes[6]

    seen = []
    shutil.rmtree(store)
    shutil.copytree(base, store)
    num_operations = forked.call("tests.runs:fit_store", store).num_operations
    for operation in range(num_operations, 0, -stride):
        shutil.rmtree(store)
        shutil.copytree(base, store)
        outcome = forked.call("tests.runs:fit_store", store, die_at=operation)
        assert outcome.signal == signal.SIGKILL
        seen.append(len(TrajectoryStore(store).fit_record().steps))
        assert slopes_of(store) == slopes[seen[-1]]
        assert read_summary(TrajectoryStore(store)).to_dict()
        outcome = forked.call("tests.runs:fit_store", store)
        assert (operation, outcome.error, outcome.message) == (operation, "", "")
        assert slopes_of(store) == slopes[6]
        assert set(file_contents(store)) == files
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {5, 6}


@pytest.mark.parametrize("operation", ["gram_store", "fit_store"])
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_gram_matrices_that_are_extended_may_be_killed_before_any_operation(
    tmp_path, forked, stride, operation
):
    """Alone, or with a fit: readers find the former ones or the new ones, whole."""
    model = {"w": ((3, 2), ml_dtypes.bfloat16)}
    base, store = tmp_path / "base", tmp_path / "store"
    for step in range(6):
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights_at(step, model))
    ingest([tmp_path / f"run/checkpoint-{step}" for step in range(5)], base, num_workers=1)
    fit_store(base)
    ingest(tmp_path / "run", base, num_workers=1)
    whole = gram(open_source(tmp_path / "run"))

    def restore():
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(base, store)

    restore()
    num_operations = forked.call(f"tests.runs:{operation}", store).num_operations
    files = set(file_contents(store))
    seen = []
    for number in range(num_operations, 0, -stride):
        restore()
        outcome = forked.call(f"tests.runs:{operation}", store, die_at=number)
        assert outcome.signal == signal.SIGKILL
        found = read_gram(TrajectoryStore(store))
        seen.append(len(found.steps))
        np.testing.assert_allclose(found.matrices["w"], whole.matrices["w"][: seen[-1], : seen[-1]], rtol=1e-12)
        if operation == "fit_store":  # both are committed in the same instant
            assert TrajectoryStore(store).fit_record().steps == found.steps
        outcome = forked.call("tests.runs:fit_store", store)
        assert (outcome.error, outcome.message) == ("", "")
        assert read_gram(TrajectoryStore(store)).steps == whole.steps
        assert set(file_contents(store)) == files
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {5, 6}
