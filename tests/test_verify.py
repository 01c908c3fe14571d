import json
import shutil

import numpy as np
import pytest

from ckptlin.errors import InputError, MemoryBudgetError, SelectionError
from ckptlin.fit import fit
from ckptlin.ingest import ingest
from ckptlin.naming import encode_name
from ckptlin.store.chunk_codec import encode_chunk
from ckptlin.store.store import TrajectoryStore, block_key
from ckptlin.verify import verify
from tests.runs import MODEL, save_checkpoint, weights_at

STEPS = range(0, 200, 10)
TENSOR = "model.layers.0.mlp.up_proj.weight"
WIDE = {**MODEL, "model.wide": ((3, 4, 5), np.float32)}


@pytest.fixture(scope="module")
def _store(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    for step in STEPS:
        save_checkpoint(root / "run" / f"checkpoint-{step}", weights_at(step, WIDE))
    store = ingest(root / "run", root / "store").store
    fit(store, name="a/b", include=[TENSOR, "wide"])  # of one type: a compiled kernel each takes its time
    return TrajectoryStore(store.path)


@pytest.fixture
def store(_store, tmp_path):
    """A store of two rows of chunks with a fit, to be damaged."""
    shutil.copytree(_store.path, tmp_path / "store")
    return TrajectoryStore(tmp_path / "store")


def chunk(store, tensor, row, block=0):
    return store.path / block_key(store.blocks(tensor)[block], row)


def rows(store, row):
    steps = store.steps_of_row(row)
    return f"{steps[0]} to {steps[-1]}"


def flip(path, position=-20):
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_a_sound_store_has_no_problems(store, num_workers):
    result = verify(store, num_workers=num_workers)
    assert result.problems == ()
    assert result.raw_bytes == sum(t.num_bytes for t in store.tensors.values()) * len(STEPS)
    num_blocks = sum(len(store.blocks(name)) for name in store.tensors)
    num_fitted = len(store.fit_record("a/b").tensors)
    assert result.num_chunks == 2 * num_blocks + 2 * num_fitted + len(store.record.blobs)
    assert result.to_dict()["ok"] is True


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("damage", ["flip", "missing", "cut", "empty"])
def test_a_damaged_chunk_is_named_by_tensor_and_steps(store, row, damage):
    path = chunk(store, TENSOR, row)
    if damage == "flip":
        flip(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-3])
    (problem,) = verify(store).problems
    what = "is missing" if damage == "missing" else "is corrupted"
    assert problem.startswith(f"the chunk of tensor `{TENSOR}` at steps {rows(store, row)} ")
    assert what in problem
    assert str(path) in problem
    assert verify(store).to_dict()["ok"] is False


def test_every_problem_is_told_in_the_same_order_every_time(store):
    flip(chunk(store, TENSOR, 1))
    flip(chunk(store, "model.norm.weight", 0))
    chunk(store, "model.scale", 0).unlink()
    problems = verify(store, num_workers=4).problems
    assert len(problems) == 3
    assert list(problems) == sorted(problems)
    assert verify(store, num_workers=1).problems == problems


def test_chunks_of_a_tensor_that_changed_places_are_found_by_the_fingerprints(store):
    """Each is sound by itself, but the weights are not those of the checkpoints."""
    experts = "model.layers.0.mlp.experts.up_proj"
    first, second = chunk(store, experts, 0), chunk(store, "model.wide", 0)
    assert verify(store).problems == ()
    first, second = chunk(store, TENSOR, 0), chunk(store, TENSOR, 1)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    problems = verify(store).problems
    assert problems == tuple(
        f"step {c.step} of {store.location} does not have the content that was ingested from {c.source}"
        for c in store.checkpoints
    )


def test_one_weight_changed_by_a_sound_chunk_is_found_in_its_step_alone(store):
    (block,) = store.blocks(TENSOR)
    spec = store.tensors[TENSOR]
    bits = store.read_chunk(block, 1)
    bits[2, 7] ^= 1
    data = encode_chunk(bits, spec.dtype, store.record.compressor)
    chunk(store, TENSOR, 1).write_bytes(data)
    (problem,) = verify(store).problems
    assert problem.startswith(f"step {store.steps_of_row(1)[2]} of {store.location} does not have the content")


def test_a_damaged_row_of_chunks_does_not_hide_a_change_in_another(store):
    flip(chunk(store, "model.scale", 0))
    (block,) = store.blocks(TENSOR)
    bits = store.read_chunk(block, 1)
    bits[0, 0] ^= 1
    data = encode_chunk(bits, store.tensors[TENSOR].dtype, store.record.compressor)
    chunk(store, TENSOR, 1).write_bytes(data)
    corrupted, changed = verify(store).problems
    assert "tensor `model.scale`" in corrupted
    assert changed.startswith(f"step {store.steps_of_row(1)[0]} of")


def test_a_window_of_steps_reads_its_chunks_alone(store):
    flip(chunk(store, TENSOR, 0))
    size = store.record.chunk_steps
    later, straddling = f"{STEPS[size]}:", f"{STEPS[size - 1]}:{STEPS[size]}"
    result = verify(store, steps=later)
    assert result.problems == ()
    assert result.raw_bytes == sum(t.num_bytes for t in store.tensors.values()) * (len(STEPS) - size)
    for steps in (straddling, "0,10"):
        (problem,) = verify(store, steps=steps).problems
        assert f"`{TENSOR}` at steps {rows(store, 0)}" in problem
    with pytest.raises(SelectionError, match="step 5 of --steps 5 does not exist"):
        verify(store, steps="5")


def test_a_fingerprint_that_was_changed_is_found(store):
    root = store.path / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["ckptlin"]["checkpoints"][3]["fingerprint"] = "0" * 32
    root.write_text(json.dumps(document))
    (problem,) = verify(TrajectoryStore(store.path)).problems
    assert problem.startswith("step 30 of")


def test_a_file_kept_beside_the_weights_is_checked(store):
    digest = store.checkpoints[0].sidecars["config.json"]
    path = store.path / "files" / digest / "c" / "0"
    other = next(p for p in (store.path / "files").glob("*/c/0") if p != path)
    flip(path, 20)
    (problem,) = verify(store).problems
    assert f"files/{digest}" in problem
    assert "is corrupted" in problem
    path.unlink()
    assert "is missing" in verify(store).problems[0]
    path.write_bytes(other.read_bytes())
    assert f"files/{digest}" in verify(store).problems[0]


@pytest.mark.parametrize("map_name", ["r2", "slope"])
@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_a_damaged_map_of_a_fit_is_found(store, map_name, damage):
    path = next((store.path / "fits" / encode_name("a/b") / map_name / TENSOR).rglob("c/*/*"))
    flip(path) if damage == "flip" else path.unlink()
    (problem,) = verify(store).problems
    assert str(path) in problem
    assert ("is missing" if damage == "missing" else "is corrupted") in problem


@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_a_damaged_table_of_a_fit_is_found(store, damage):
    path = store.path / "fits" / encode_name("a/b") / "histogram" / "c" / "0" / "0" / "0"
    flip(path) if damage == "flip" else path.unlink()
    (problem,) = verify(store).problems
    assert str(path) in problem


@pytest.mark.parametrize("content", [None, "", "{}", '{"attributes": {"ckptlin": {"id": "other"}}}'])
def test_a_fit_whose_group_is_gone_or_garbled_is_found(store, content):
    path = store.path / "fits" / encode_name("a/b") / "zarr.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    (problem,) = verify(store).problems
    assert "fit 'a/b'" in problem


def test_a_stale_fit_is_no_problem(store):
    """What it was computed from is not there any more; it is refused wherever it could mislead."""
    root = store.path / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["ckptlin"]["fits"]["a/b"]["fingerprints"][0] = "0" * 32
    root.write_text(json.dumps(document))
    assert verify(TrajectoryStore(store.path)).problems == ()


def test_what_does_not_fit_into_memory_or_makes_no_sense_is_refused(store):
    with pytest.raises(MemoryBudgetError, match=r"verify needs at least .*; give --memory [0-9]+MB or more"):
        verify(store, memory_bytes=1 << 20)
    with pytest.raises(InputError, match="--workers must be at least 1, not 0"):
        verify(store, num_workers=0)
