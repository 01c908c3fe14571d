"""Gram matrices that a store keeps: read back, extended, replaced, interrupted, outdated, damaged."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ckptlin import gram as gram_module
from ckptlin.block_gram import BlockGram, increments
from ckptlin.errors import CorruptChunkError, InputError, SelectionError, StaleFitError, StoreLockedError
from ckptlin.fit import fit, plan_fit, read_summary
from ckptlin.gram import gram, plan_gram, read_gram
from ckptlin.info import info
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store import local_files as local_files_module
from ckptlin.store import metadata
from ckptlin.store.lock import writer_lock
from ckptlin.store.metadata import ROOT_KEY
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import StoreWriter
from ckptlin.verify import verify
from tests.runs import MODEL, file_contents, save_checkpoint, weights_at
from tests.test_fit import assert_same_figures
from tests.test_gram import assert_same

EARLY, ADDED = tuple(range(0, 140, 10)), (150, 170, 300)
# Large enough to be summed in float32.
WIDE = {**MODEL, "model.layers.1.mlp.up_proj.weight": ((40, 500), ml_dtypes.bfloat16)}


@pytest.fixture
def store(make_run, tmp_path):
    return ingest(make_run(EARLY, model=WIDE), tmp_path / "store", num_workers=1).store


@pytest.fixture
def grown(store, make_run):
    """The store with matrices of its first steps, and steps that were appended since."""
    gram(store)
    return ingest(make_run(ADDED, model=WIDE), store.path, num_workers=1).store


def reopen(store):
    return TrajectoryStore(store.path)


def assert_nearly_same(one, other):
    assert one.steps == other.steps
    assert dict(one.rounding) == pytest.approx(dict(other.rounding), rel=1e-12)
    for name in one.matrices:
        lengths = np.sqrt(np.diag(other.matrices[name]))
        error = np.abs(one.matrices[name] - other.matrices[name])
        assert np.all(error <= 1e-12 * np.outer(lengths, lengths)), name
        assert one.samples[name].tobytes() == other.samples[name].tobytes()


def test_what_is_read_back_is_what_was_returned(store):
    found = gram(store)
    assert_same(read_gram(reopen(store)), found)
    record = reopen(store).gram_record()
    assert record.steps == EARLY
    assert set(record.tensors) == set(found.matrices)
    assert record.fingerprints == tuple(c.fingerprint for c in store.checkpoints)
    assert record.commit == store.record.commit == reopen(store).record.commit - 1


def test_samples_are_cut_into_chunks_and_tables_too(store, monkeypatch):
    whole = gram(store, keep=False)
    for module in (gram_module, metadata):
        monkeypatch.setattr(module, "SAMPLE_CHUNK", 100)
        monkeypatch.setattr(module, "table_chunk", lambda num_tensors: min(num_tensors, 2))
    gram(store)
    assert_same(read_gram(reopen(store)), whole)
    assert len(list((store.path / "gram/samples/bfloat16/c/0").iterdir())) == 4
    assert len(list((store.path / "gram/rounding/c").iterdir())) == 3


def test_what_is_there_is_not_computed_again(store, monkeypatch):
    found = gram(store)
    before = file_contents(store.path)
    monkeypatch.setattr(TrajectoryStore, "read_chunk", None)
    assert plan_gram(reopen(store)).bytes_in == 0
    assert_same(gram(reopen(store)), found)
    window = gram(reopen(store), steps="20:100:20", include=["up_proj"])
    rows = [EARLY.index(step) for step in window.steps]
    assert window.steps == (20, 40, 60, 80, 100)
    assert set(window.matrices) == {name for name in found.matrices if "up_proj" in name}
    for name, matrix in window.matrices.items():
        np.testing.assert_array_equal(matrix, found.window(rows).matrices[name])
    assert file_contents(store.path) == before


def test_what_is_not_kept_only_reads(store):
    before = file_contents(store.path)
    with writer_lock(store.path, store.location):
        result = gram(store, keep=False)
        part = gram(store, steps="0:50")
    assert file_contents(store.path) == before
    assert part.steps == EARLY[:6]
    assert_same(gram(store), result)
    with writer_lock(store.path, store.location):
        gram(reopen(store))  # there already: nothing is written


def test_only_one_process_writes(store):
    with writer_lock(store.path, store.location), pytest.raises(StoreLockedError, match="another process"):
        gram(store)


# --- stores that change -------------------------------------------------------------------------------


def test_they_are_extended_when_steps_were_appended(grown, tmp_path):
    plan = plan_gram(grown)
    assert plan.num_known == len(EARLY)
    former = read_gram(grown)
    assert former.steps == EARLY
    found = gram(grown)
    assert_nearly_same(found, gram(open_source(tmp_path / "run")))
    assert_same(read_gram(reopen(grown)), found)
    for name, matrix in former.matrices.items():
        np.testing.assert_array_equal(found.matrices[name][: len(EARLY), : len(EARLY)], matrix)


def test_only_products_with_new_steps_are_taken(grown, tmp_path, monkeypatch):
    """Were the matrices in the store others, those products would be others, and the new ones the same."""
    right = gram(open_source(tmp_path / "run"))
    kept = read_gram(grown)
    doubled = replace(kept, matrices={name: 2 * matrix for name, matrix in kept.matrices.items()})
    monkeypatch.setattr(gram_module, "read_gram", lambda store: doubled)
    found = gram(grown, keep=False)
    num = len(EARLY)
    for name, matrix in found.matrices.items():
        np.testing.assert_array_equal(matrix[:num, :num], 2 * right.matrices[name][:num, :num])
        moves, expected = increments(matrix), increments(right.matrices[name])
        np.testing.assert_allclose(moves[num - 1 :], expected[num - 1 :], atol=1e-12 * matrix.max())


def test_old_pairs_of_chunk_rows_are_not_read_again(tmp_path):
    model = {"w": ((3000,), ml_dtypes.bfloat16)}
    for step in range(40):
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights_at(step, model))
    early = [f"{step}={tmp_path}/run/checkpoint-{step}" for step in range(28)]
    store = ingest(early, tmp_path / "store", num_workers=1).store
    gram(store)
    store = ingest(tmp_path / "run", tmp_path / "store", num_workers=1).store
    size = store.record.chunk_steps
    assert size == 14
    read = []

    class Recording(TrajectoryStore):
        def read_chunk(self, block, chunk_row, buffer=None):
            read.append(chunk_row)
            return super().read_chunk(block, chunk_row, buffer)

    work = BlockGram(source=Recording(store.path), rows=range(40), num_known=28, num_held=1, sample_size=9)
    work(store.blocks("w"))
    # The new row of chunks with all, and the row before it, whose last step the first new move begins at.
    assert sorted(read) == [0, 0, 1, 1, 2]
    read.clear()
    fresh = BlockGram(source=Recording(store.path), rows=range(40), num_known=0, num_held=1, sample_size=9)
    fresh(store.blocks("w"))
    assert sorted(read) == [0, 0, 0, 1, 1, 2]


def replace_step(store, run, step):
    shutil.rmtree(run / f"checkpoint-{step}")
    save_checkpoint(run / f"checkpoint-{step}", weights_at(step + 10**6, WIDE))
    notes = []

    class Noting:
        def phase(self, title, num_bytes):
            return nullcontext(lambda num_bytes: None)

        def note(self, message):
            notes.append(message)

    return ingest(run, store.path, replace_steps=True, progress=Noting()).store, notes


def test_they_go_when_a_step_is_replaced(store, tmp_path):
    gram(store)
    replaced, notes = replace_step(store, tmp_path / "run", 50)
    assert any("Gram matrices" in note and "ckptlin gram" in note for note in notes)
    with pytest.raises(SelectionError, match=r"has no Gram matrices; run `ckptlin gram"):
        read_gram(replaced)
    assert not (store.path / "gram").exists()
    assert_same(gram(replaced), gram(open_source(tmp_path / "run")))


def test_those_of_other_checkpoints_are_stale(store, tmp_path):
    gram(store)
    root = store.path / ROOT_KEY
    document = json.loads(root.read_text())
    document["attributes"]["ckptlin"]["gram"]["fingerprints"][3] = "other"
    root.write_text(json.dumps(document))
    found = reopen(store)
    with pytest.raises(
        StaleFitError, match=r"computed from checkpoints that have since been replaced; run `ckptl"
    ):
        read_gram(found)
    assert info(found).gram["state"] == "stale"
    assert verify(found).problems == ()
    assert plan_gram(found).num_known == 0
    assert_same(gram(found), gram(open_source(tmp_path / "run")))
    assert info(reopen(store)).gram["state"] == "current"


def test_info_says_how_far_they_go(store, grown):
    assert info(store).gram is None
    shown = info(grown).gram
    assert (shown["state"], shown["steps"]) == ("partial", list(EARLY))
    gram(grown)
    assert info(reopen(grown)).gram["state"] == "current"


def test_a_store_of_before_there_were_any_is_read(store):
    root = store.path / ROOT_KEY
    document = json.loads(root.read_text())
    del document["attributes"]["ckptlin"]["gram"]
    root.write_text(json.dumps(document))
    found = reopen(store)
    assert found.record.gram is None
    gram(found)
    assert read_gram(reopen(store)).steps == EARLY


# --- in the pass of a fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [14, 40])
def test_a_fit_keeps_them_too(make_run, tmp_path, num_steps):
    run = make_run(range(num_steps), model=WIDE)
    store = ingest(run, tmp_path / "store", num_workers=1).store
    result = fit(store)
    assert result.keeps_gram
    kept, expected = read_gram(reopen(store)), gram(open_source(run))
    assert kept.rounding == pytest.approx(expected.rounding, rel=1e-12)
    assert_same(replace(kept, rounding=expected.rounding), expected)
    assert_same_figures(read_summary(reopen(store)), result.summary)
    alone = fit(store, name="alone", gram=False).summary
    assert_same_figures(alone, result.summary)


def test_a_fit_extends_them(grown, tmp_path):
    assert plan_fit(grown).gram
    fit(grown)
    assert_nearly_same(read_gram(reopen(grown)), gram(open_source(tmp_path / "run")))
    assert not plan_fit(reopen(grown)).gram  # they are there
    record = reopen(grown).gram_record()
    assert fit(reopen(grown)).keeps_gram
    assert reopen(grown).gram_record() == record


def test_a_fit_of_a_part_leaves_them_alone(store):
    assert not fit(store, steps=":90").keeps_gram
    assert not fit(store, include=["up_proj"]).keeps_gram
    assert not fit(store, keep=False).keeps_gram
    assert not fit(store, gram=False).keeps_gram
    assert reopen(store).record.gram is None
    for options in ({"steps": ":90"}, {"exclude": ["norm"]}):
        with pytest.raises(InputError, match=r"--gram keeps the matrices of all steps and tensors of a store"):
            fit(store, gram=True, **options)
    with pytest.raises(InputError, match=r"--gram keeps .* --no-keep keeps nothing"):
        fit(store, gram=True, keep=False)
    gram(store)
    assert fit(store, steps=":90").keeps_gram  # what the store has holds all that is asked for
    assert reopen(store).gram_record().steps == EARLY


def test_a_fit_without_the_memory_for_all_rows_leaves_them_out(make_run, tmp_path):
    model = {"w": ((300_000,), np.float32)}
    store = ingest(make_run(range(60), model=model), tmp_path / "store", num_workers=1).store
    without = plan_fit(store, gram=False, num_workers=1).memory.peak_bytes
    with_them = plan_fit(store, gram=True, num_workers=1).memory.peak_bytes
    assert with_them > without + 50 * 300_000 * 4
    assert plan_fit(store, num_workers=1).gram
    assert not plan_fit(store, num_workers=1, memory_bytes=with_them - 1).gram
    # Four workers that fit alone, or one that also multiplies.
    assert not plan_fit(store, num_workers=4, memory_bytes=with_them + 10).gram or (
        plan_fit(store, num_workers=4, memory_bytes=with_them + 10).memory.num_workers
        >= plan_fit(store, gram=False, num_workers=4, memory_bytes=with_them + 10).memory.num_workers / 2
    )


# --- what fails ---------------------------------------------------------------------------------------


class Stopped(Exception):
    """What ends a pass in these tests."""


class Killed(BaseException):
    """The same, without giving the writer a chance to clean up."""


STAGES = {
    "in the first block": (BlockGram, "of_bits", False),
    "writing the arrays": (gram_module, "encode_plain", False),
    "writing metadata": (StoreWriter, "write_steps", False),
    "before the exchange": (local_files_module, "exchange", False),
    "after the exchange": (local_files_module, "exchange", True),
    "syncing after the exchange": (local_files_module, "sync_directory", False),
    "committing": (StoreWriter, "_commit_root", False),
    "after the commit": (StoreWriter, "_commit_root", True),
}


@pytest.mark.parametrize("error", [Stopped, Killed])
@pytest.mark.parametrize("stage", STAGES)
def test_a_pass_that_fails_leaves_the_former_matrices_and_the_next_one_works(grown, monkeypatch, stage, error):
    former = read_gram(grown)
    owner, attribute, runs_first = STAGES[stage]
    real = getattr(owner, attribute)

    def stop(*args, **kwargs):
        if runs_first:
            real(*args, **kwargs)
        raise error

    with monkeypatch.context() as patch:
        # What fails once works again when the writer cleans up.
        calls = iter([stop])
        patch.setattr(owner, attribute, lambda *args, **kwargs: next(calls, real)(*args, **kwargs))
        with pytest.raises(error):
            gram(grown, num_workers=1)
    found = read_gram(reopen(grown))
    if stage == "after the commit":
        assert found.steps == EARLY + ADDED
    else:
        assert_same(found, former)
    assert gram(reopen(grown)).steps == EARLY + ADDED
    assert read_gram(reopen(grown)).steps == EARLY + ADDED
    with StoreWriter(grown.path, fresh=False):
        assert not (grown.path / ".gram").exists()
    assert read_gram(reopen(grown)).steps == EARLY + ADDED


@pytest.mark.parametrize("at", ["matrices", "rounding", "samples"])
def test_damage_is_found(store, at):
    gram(store)
    chunk = next(
        path for path in (store.path / "gram" / at).rglob("*") if path.is_file() and path.name != ROOT_KEY
    )
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(CorruptChunkError, match=f"gram/{at}"):
        read_gram(reopen(store))
    (problem,) = verify(reopen(store)).problems
    assert f"gram/{at}" in problem
    chunk.unlink()
    (problem,) = verify(reopen(store)).problems
    assert "is missing" in problem


def test_every_chunk_is_counted_by_verify(store):
    before = verify(store).num_chunks
    gram(store)
    assert verify(reopen(store)).num_chunks == before + len(reopen(store).gram_record().tensors)
