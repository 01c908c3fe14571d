"""Fits that a store keeps: read back, replaced, interrupted, outdated."""

import shutil
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest

from ckptlin import fit as fit_module
from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    SelectionError,
    StaleFitError,
    StoreError,
    StoreLockedError,
)
from ckptlin.fit import fit, read_summary
from ckptlin.ingest import ingest
from ckptlin.kernels.regression import BlockRegression
from ckptlin.source import open_source
from ckptlin.store import local_files as local_files_module
from ckptlin.store import metadata
from ckptlin.store import store as store_module
from ckptlin.store.lock import writer_lock
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import StoreWriter
from tests.runs import file_contents, save_checkpoint, weights_at
from tests.test_fit import assert_same_figures

MODEL = {"model.layers.0.mlp.weight": ((6, 5), ml_dtypes.bfloat16), "model.norm.weight": ((5,), np.float32)}
TENSORS = tuple(MODEL)
STEPS = tuple(range(0, 200, 10))
EARLY = "0:90"


@pytest.fixture
def store(make_run, tmp_path):
    return ingest(make_run(STEPS, model=MODEL), tmp_path / "store", num_workers=1).store


def reopen(store):
    return TrajectoryStore(store.path)


def maps_of(store, name="default"):
    found = reopen(store)
    return {
        (map_name, tensor): [found.read_map(name, map_name, block).tobytes() for block in found.blocks(tensor)]
        for map_name in found.fit_record(name).maps
        for tensor in found.fit_record(name).tensors
    }


def test_the_figures_that_are_read_back_are_those_that_were_returned(store):
    result = fit(store)
    found = reopen(store)
    assert_same_figures(read_summary(found), result.summary)
    assert read_summary(found).to_dict() == result.summary.to_dict()
    record = found.fit_record()
    assert record.steps == STEPS
    assert sorted(record.tensors) == sorted(TENSORS)
    assert record.maps == result.maps
    assert record.fingerprints == tuple(c.fingerprint for c in found.checkpoints)
    assert record.commit == store.record.commit == found.record.commit - 1


def test_a_table_of_many_tensors_is_cut_into_chunks(make_run, tmp_path, monkeypatch):
    for module in (fit_module, store_module, metadata):
        monkeypatch.setattr(module, "table_chunk", lambda num_tensors: min(num_tensors, 3))
    model = {f"w{i}": ((2,), np.float32) for i in range(7)}
    store = ingest(make_run((0, 1, 2), model=model), tmp_path / "store", num_workers=1).store
    result = fit(store, maps={})
    assert_same_figures(read_summary(reopen(store)), result.summary)
    assert len(list((store.path / "fits/default/counts/c").iterdir())) == 3


@pytest.mark.parametrize("name", ["default", "a/b", "..", "zarr.json", "step", "__x", "é %"])
def test_a_fit_may_have_any_name(store, name):
    result = fit(store, name=name, steps=EARLY)
    assert list(reopen(store).record.fits) == [name]
    assert_same_figures(read_summary(reopen(store), name), result.summary)
    assert maps_of(store, name)


def test_a_fit_takes_the_place_of_one_of_its_name_and_leaves_others_alone(store):
    other = fit(store, name="other", steps="100:").summary
    others_files = file_contents(store.path / "fits/other")
    fit(store, maps={"intercept": "float32"})
    second = fit(store, steps=EARLY, maps={"r2": "float16"}).summary
    found = reopen(store)
    assert set(found.record.fits) == {"default", "other"}
    assert_same_figures(read_summary(found), second)
    assert_same_figures(read_summary(found, "other"), other)
    assert file_contents(store.path / "fits/other") == others_files
    assert not (store.path / "fits/default/intercept").exists()
    assert not (store.path / ".fits").exists()
    with pytest.raises(SelectionError, match=r"no fit named 'x' \(there: default, other\)"):
        read_summary(found, "x")


def test_the_same_fit_twice_leaves_the_same_figures_and_maps(store):
    first, maps = fit(store).summary, maps_of(store)
    assert_same_figures(fit(reopen(store)).summary, first)
    assert maps_of(store) == maps


def test_a_fit_that_is_not_kept_only_reads(store):
    before = file_contents(store.path)
    with writer_lock(store.path, store.location):
        result = fit(store, keep=False)
    assert file_contents(store.path) == before
    assert result.maps == {}
    assert_same_figures(result.summary, fit(store).summary)


def test_only_one_process_writes(store):
    with writer_lock(store.path, store.location), pytest.raises(StoreLockedError, match="another process"):
        fit(store)
    fit(store)


# --- stores that change -------------------------------------------------------------------------------


def test_a_fit_stays_readable_when_steps_are_appended(store, make_run):
    former = fit(store).summary
    grown = ingest(make_run((500, 600), model=MODEL), store.path).store
    assert len(grown.steps) == len(STEPS) + 2
    assert_same_figures(read_summary(grown), former)
    assert grown.fit_record().steps == STEPS
    assert fit(grown).summary.steps == (*STEPS, 500, 600)


def replace_step(store, run, step):
    shutil.rmtree(run / f"checkpoint-{step}")
    save_checkpoint(run / f"checkpoint-{step}", weights_at(step + 10**6, MODEL))
    return ingest(run, store.path, replace_steps=True).store


@pytest.mark.parametrize("step", [0, 50, 190])
def test_a_fit_of_checkpoints_that_were_replaced_is_refused(store, tmp_path, step):
    fit(store)
    replaced = replace_step(store, tmp_path / "run", step)
    with pytest.raises((StaleFitError, SelectionError), match="run `ckptlin fit"):
        read_summary(replaced)
    with pytest.raises((StaleFitError, SelectionError), match="run `ckptlin fit"):
        replaced.read_map("default", "r2", replaced.blocks(TENSORS[0])[0])
    assert_same_figures(fit(replaced).summary, read_summary(reopen(store)))


def test_a_record_of_other_fingerprints_is_stale(store):
    fit(store)
    found = reopen(store)
    checkpoints = found.record.checkpoints
    object.__setattr__(checkpoints[3], "fingerprint", "other")
    with pytest.raises(StaleFitError, match=r"computed from checkpoints that have since been replaced; run"):
        read_summary(found)


def test_a_store_that_has_changed_since_it_was_opened_is_fitted_as_it_is_now(make_run, tmp_path):
    """Rows that were planned for a former store would be those of other steps."""
    run = make_run((100, 200, 300), model=MODEL)
    opened = ingest(run, tmp_path / "store").store
    make_run((0, 400), model=MODEL)
    ingest(run, tmp_path / "store")
    result = fit(opened)
    assert result.summary.steps == (0, 100, 200, 300, 400)
    assert_same_figures(result.summary, fit(open_source(run)).summary)
    assert fit(opened, steps="100,300").summary.steps == (100, 300)
    assert reopen(opened).fit_record().steps == (100, 300)
    with pytest.raises(InputError):
        fit(opened, steps="400,")


# --- fits that fail -----------------------------------------------------------------------------------


class Stopped(Exception):
    """What ends a fit in these tests."""


class Killed(BaseException):
    """The same, without giving the writer a chance to clean up."""


def raising(error, after=None):
    def stop(*args, **kwargs):
        if after is not None:
            after(*args, **kwargs)
        raise error

    return stop


STAGES = {
    "in the first block": (BlockRegression, "_outputs", False),
    "writing a map": (fit_module, "encode_plain", False),
    "in the null": (fit_module, "simulate_null", False),
    "writing the summary": (fit_module, "_write_tables", False),
    "after the summary": (fit_module, "_write_tables", True),
    "writing metadata": (StoreWriter, "write_steps", False),
    "before the exchange": (local_files_module, "exchange", False),
    "after the exchange": (local_files_module, "exchange", True),
    "syncing after the exchange": (local_files_module, "sync_directory", False),
    "committing": (StoreWriter, "_commit_root", False),
    "after the commit": (StoreWriter, "_commit_root", True),
}


@pytest.mark.parametrize("error", [Stopped, Killed])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_fit_that_fails_leaves_the_former_one_and_the_next_one_works(
    store, monkeypatch, stage, error, is_replaced
):
    fit(store, name="other", steps="100:")
    if is_replaced:
        fit(store, steps=EARLY, maps={"r2": "float32"})
        former, former_maps = read_summary(reopen(store)), maps_of(store)
    other = read_summary(reopen(store), "other")
    owner, attribute, runs_first = STAGES[stage]
    with monkeypatch.context() as patch:
        real = getattr(owner, attribute)
        # What fails once works again when the writer cleans up.
        calls = iter([raising(error, real if runs_first else None)])
        patch.setattr(owner, attribute, lambda *args, **kwargs: next(calls, real)(*args, **kwargs))
        has_exchange = is_replaced or attribute != "exchange"
        with pytest.raises(error) if has_exchange else nullcontext():
            fit(store)
    found = reopen(store)
    if stage == "after the commit" or not has_exchange:
        assert read_summary(found).steps == STEPS
        maps_of(store)
    elif is_replaced:
        assert_same_figures(read_summary(found), former)
        assert maps_of(store) == former_maps
    else:
        assert list(found.record.fits) == ["other"]
    assert_same_figures(read_summary(found, "other"), other)

    second = fit(reopen(store)).summary
    assert_same_figures(read_summary(reopen(store)), second)
    assert second.steps == STEPS
    assert_same_figures(read_summary(reopen(store), "other"), other)
    assert not (store.path / ".fits").exists()
    assert sorted(path.name for path in (store.path / "fits").iterdir()) == ["default", "other", "zarr.json"]


@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_former_fit_or_the_new_one(store, tmp_path, forked, stride):
    """At the one moment when former and new fit have changed places, too: the root is then written."""
    fit(store, steps=EARLY)
    former = read_summary(reopen(store)).to_dict()
    work = tmp_path / "work"
    shutil.copytree(store.path, work)
    num_operations = forked.call("tests.runs:fit_store", work).num_operations
    new = read_summary(TrajectoryStore(work)).to_dict()
    found = []
    for operation in range(num_operations, 0, -stride):
        shutil.rmtree(work)
        shutil.copytree(store.path, work)
        forked.call("tests.runs:fit_store", work, full_at=operation)
        found.append(read_summary(TrajectoryStore(work)).to_dict() == new)
        assert found[-1] or read_summary(TrajectoryStore(work)).to_dict() == former
        assert maps_of(TrajectoryStore(work))
        fit(TrajectoryStore(work), num_workers=1)
        assert read_summary(TrajectoryStore(work)).to_dict() == new
    assert set(found) == {True, False}


def test_a_chunk_that_is_damaged_ends_the_fit_and_leaves_the_former_one(store):
    former = fit(store, steps=EARLY).summary
    chunk = next((store.path / "weights" / TENSORS[0] / "c").glob("1/*/*"))
    data = bytearray(chunk.read_bytes())
    data[20] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(CorruptChunkError, match=rf"tensor `{TENSORS[0]}`"):
        fit(store)
    assert_same_figures(read_summary(reopen(store)), former)
    assert_same_figures(fit(store, steps=EARLY).summary, former)


def test_a_store_that_was_replaced_while_it_was_read_is_not_mixed_up(store, tmp_path):
    opened = reopen(store)
    replace_step(store, tmp_path / "run", 50)
    with pytest.raises(StoreError, match="was replaced while it was being read"):
        fit(opened, keep=False)
