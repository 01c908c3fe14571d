"""Stores of past formats are read for ever.  How they were made is in tests/golden."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from ckptlin.dtypes import from_zarr
from ckptlin.ingest import ingest
from ckptlin.naming import encode_name
from ckptlin.store.store import TrajectoryStore
from ckptlin.verify import verify
from tests.runs import save_checkpoint, stored_bits

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = ["v1"]
each_format = pytest.mark.parametrize("version", FORMATS)


def expected_bits(entry):
    dtype = from_zarr(entry["dtype"])
    rows = [np.frombuffer(bytes.fromhex(row), dtype.bits) for row in entry["bits"]]
    return np.stack(rows).reshape(len(rows), *entry["shape"])


@pytest.fixture
def golden():
    def read(version):
        expected = json.loads((GOLDEN / f"store-{version}.json").read_text())
        return TrajectoryStore(GOLDEN / f"store-{version}"), expected

    return read


@each_format
def test_a_golden_store_gives_back_every_bit(golden, version):
    store, expected = golden(version)
    assert store.steps == tuple(expected["steps"])
    assert sorted(store.tensors) == sorted(expected["tensors"])
    for name, entry in expected["tensors"].items():
        bits = expected_bits(entry)
        assert store.tensors[name].dtype.zarr == entry["dtype"]
        np.testing.assert_array_equal(stored_bits(store, name), bits, strict=True)


@each_format
def test_a_golden_store_gives_back_its_files_and_verifies(golden, version):
    store, expected = golden(version)
    assert store.tied == expected["tied"]
    assert store.record.config == json.loads(expected["config.json"])
    for step in store.steps:
        assert store.sidecars(step) == {"config.json": expected["config.json"].encode()}
    assert verify(store, num_workers=1).problems == ()


@each_format
def test_a_golden_store_is_read_by_plain_zarr(golden, version):
    store, expected = golden(version)
    weights = zarr.open_group(store.path, mode="r")["weights"]
    np.testing.assert_array_equal(weights["step"][:], expected["steps"])
    for name, entry in expected["tensors"].items():
        bits = expected_bits(entry)
        np.testing.assert_array_equal(weights[encode_name(name)][:].view(bits.dtype), bits)


@each_format
def test_a_golden_store_can_be_appended_to(golden, version, tmp_path):
    store, expected = golden(version)
    shutil.copytree(store.path, tmp_path / "store")
    weights = {
        name: expected_bits(entry)[:1].view(from_zarr(entry["dtype"]).numpy).reshape(entry["shape"])
        for name, entry in expected["tensors"].items()
    }
    run = save_checkpoint(tmp_path / "run/checkpoint-999", weights, json.loads(expected["config.json"]))
    result = ingest(run, tmp_path / "store", num_workers=1)
    assert result.store.steps == (*store.steps, 999)
    assert verify(result.store, num_workers=1).problems == ()
    assert result.store.checkpoints[:-1] == store.checkpoints
