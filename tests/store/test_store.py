import json
import shutil

import numpy as np
import pytest

from ckptlin.errors import (
    CorruptChunkError,
    NotAStoreError,
    SelectionError,
    StoreError,
    StoreVersionError,
)
from ckptlin.ingest import ingest
from ckptlin.store.store import TrajectoryStore, block_key
from tests.runs import CONFIG, MODEL, stored_bits, weights_at

STEPS = tuple(range(0, 200, 10))  # 20 steps lie in two rows of chunks
TENSOR = "model.embed_tokens.weight"


@pytest.fixture
def store(make_run, tmp_path):
    return ingest(make_run(STEPS), tmp_path / "store", num_workers=1).store


def edit_root(store, change):
    path = store.path / "zarr.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "rows", [[0], [3, 4, 5], [5, 3], [0, 13], [19, 0, 7], [2, 2], list(range(20)), [11, 12, 13], [18, 19]]
)
def test_rows_are_read_in_the_order_asked_for(store, rows):
    everything = stored_bits(store, TENSOR).reshape(len(STEPS), -1)
    (block,) = store.blocks(TENSOR)
    found = store.read_block(block, rows)
    np.testing.assert_array_equal(found, everything[rows], strict=True)
    assert found.flags.c_contiguous


def test_a_block_that_was_read_is_the_caller_s_own(store):
    (block,) = store.blocks(TENSOR)
    store.read_block(block, [0, 1])[:] = 0
    assert store.read_block(block, [0, 1]).any()


def test_a_store_knows_its_run(store, tmp_path):
    assert store.steps == STEPS
    assert store.location == str(tmp_path / "store")
    assert list(store.tensors) == list(ingest_order(tmp_path))
    assert repr(store) == f"<TrajectoryStore {tmp_path / 'store'}: 20 steps, {len(MODEL)} tensors>"
    assert store.sidecars(30) == {"config.json": json.dumps(CONFIG).encode()}
    assert store.checkpoints[3].source == str(tmp_path / "run/checkpoint-30")


def ingest_order(tmp_path):
    with (tmp_path / "run/checkpoint-0/model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    del header["__metadata__"]
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def test_a_step_or_fit_that_is_not_there_is_named(store):
    with pytest.raises(SelectionError, match=r"step 31 is not in .*store, which holds 20 steps, 0 to 190"):
        store.sidecars(31)
    with pytest.raises(SelectionError, match=r"no fit named 'x' \(there: none\); run `ckptlin fit"):
        store.fit_record("x")
    with pytest.raises(SelectionError, match=r"no steps .* were selected"):
        store.read_block(store.blocks(TENSOR)[0], [])


@pytest.mark.parametrize(
    ("tensor", "row", "steps"),
    [(TENSOR, 0, "0 to 90"), (TENSOR, 1, "100 to 190"), ("model.scale", 1, "100 to 190")],
)
def test_a_missing_chunk_is_reported_with_its_tensor_and_steps(store, tensor, row, steps):
    per_row = store.record.chunk_steps
    steps = f"{STEPS[row * per_row]} to {STEPS[min((row + 1) * per_row, 20) - 1]}"
    key = block_key(store.blocks(tensor)[0], row)
    (store.path / key).unlink()
    with pytest.raises(
        CorruptChunkError, match=f"tensor `{tensor}` at steps {steps} is missing: .*{key}; restore"
    ):
        store.read_block(store.blocks(tensor)[0], [row * per_row])
    other = 1 - row
    assert store.read_block(
        store.blocks(tensor)[0], [other * per_row]
    ).size  # the other chunk is as good as before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_chunk_is_reported_with_its_tensor_and_steps(store, damage):
    (block,) = store.blocks(TENSOR)
    path = store.path / block_key(block, 1)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    path.write_bytes({"flip": data, "cut": data[:-7], "empty": b""}[damage])
    first, last = STEPS[store.record.chunk_steps], STEPS[-1]
    with pytest.raises(CorruptChunkError, match=f"tensor `{TENSOR}` at steps {first} to {last} .*is corrupted"):
        store.read_block(block, [0, 19])


def test_a_damaged_file_of_a_checkpoint_is_reported(store):
    digest = store.checkpoints[0].sidecars["config.json"]
    path = store.path / f"files/{digest}/c/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptChunkError, match=f"files/{digest}/c/0 is corrupted"):
        store.sidecars(0)
    path.unlink()
    with pytest.raises(CorruptChunkError, match=f"files/{digest}/c/0 is missing"):
        store.sidecars(0)


def test_a_store_of_a_newer_format_asks_for_an_upgrade(store):
    edit_root(store, lambda d: d["attributes"]["ckptlin"].update(format_version=2, tensors="something new"))
    with pytest.raises(StoreVersionError, match=r"store format 2, and this ckptlin reads up to 1; upgrade"):
        TrajectoryStore(store.path)


@pytest.mark.parametrize(
    "document",
    ["", "{", "[]", "1", '{"zarr_format": 3, "node_type": "group"}', '{"attributes": {"ckptlin": 1}}',
     '{"attributes": null}'],
)  # fmt: skip
def test_another_zarr_json_is_no_store(tmp_path, document):
    (tmp_path / "zarr.json").write_text(document)
    with pytest.raises(NotAStoreError, match=str(tmp_path)):
        TrajectoryStore(tmp_path)


def test_what_is_no_store_is_described(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    for name, what in (
        ("nowhere", "does not exist"),
        ("file", "is a file"),
        ("directory", "is a directory, but"),
    ):
        with pytest.raises(NotAStoreError, match=f"{name} {what}.*ckptlin ingest"):
            TrajectoryStore(tmp_path / name)


def test_a_reader_notices_that_the_store_was_rebuilt_under_it(store, make_run, tmp_path):
    """Its rows are other steps now: the old reader must not mistake them."""
    (block,) = store.blocks(TENSOR)
    ingest(make_run([5]), store.path, num_workers=1)
    with pytest.raises(StoreError, match=r"store was replaced while it was being read; run this again"):
        store.read_block(block, [1])
    again = TrajectoryStore(store.path)
    expected = weights_at(5)[TENSOR].reshape(-1).view(np.uint16)
    np.testing.assert_array_equal(again.read_block(block, [1])[0], expected)


def test_a_reader_notices_that_the_store_is_gone(store):
    (block,) = store.blocks(TENSOR)
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match="store was replaced while it was being read"):
        store.read_block(block, [1])
