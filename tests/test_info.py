import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from ckptlin.fit import fit, plan_fit
from ckptlin.info import info
from ckptlin.ingest import ingest
from ckptlin.store.store import TrajectoryStore
from tests.runs import CONFIG, MODEL, file_contents, save_checkpoint, weights_at

TENSOR = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def store(make_run, tmp_path):
    return ingest(make_run([0, 100, 200]), tmp_path / "store").store


def test_it_counts_what_the_store_holds(store, tmp_path):
    found = info(store)
    assert found.location == str(tmp_path / "store")
    assert found.steps == (0, 100, 200)
    assert found.sources == tuple(str(tmp_path / "run" / f"checkpoint-{s}") for s in (0, 100, 200))
    assert found.num_tensors == len(MODEL)
    assert found.num_params == 12 * 4 + 3 * 4 * 5 + 4 * 6 + 4 + 1 + 3
    assert found.num_fitted == found.num_params - 3  # all but the integers
    assert found.dtypes == {"bfloat16": 108, "float32": 24, "float16": 4, "float64": 1, "int64": 3}
    assert found.raw_bytes == 3 * (2 * 108 + 4 * 24 + 2 * 4 + 8 + 8 * 3)
    below = [p for p in (tmp_path / "store" / "weights").rglob("*") if p.is_file()]
    assert found.stored_bytes == sum(p.stat().st_size for p in below)
    assert found.architectures == tuple(CONFIG["architectures"])
    assert found.files == ("config.json",)
    assert found.fits == ()
    assert found.commit == 1


def test_it_projects_what_a_fit_needs(store):
    plan = plan_fit(store, memory_bytes=1 << 50)
    found = info(store)
    assert found.fit_memory_bytes == plan.memory.peak_bytes
    assert found.fit_bytes_in == plan.bytes_in


def test_it_is_plain_data(store):
    fit(store, include=[TENSOR])
    found = info(TrajectoryStore(store.path))
    data = json.loads(json.dumps(found.to_dict()))
    assert data.keys() == {field.name for field in dataclasses.fields(found)}
    assert data["steps"] == [0, 100, 200]
    assert data["fits"][0]["name"] == "default"


def test_it_reads_no_weights_and_writes_nothing(store, tmp_path):
    before = file_contents(tmp_path / "store")
    for path in (tmp_path / "store" / "weights").rglob("c/*"):
        if path.is_file():
            path.write_bytes(b"")
    info(TrajectoryStore(store.path))
    after = file_contents(tmp_path / "store")
    assert after.keys() == before.keys()


def test_a_fit_is_current_until_steps_are_added(store, make_run, tmp_path):
    fit(store, steps="0:200", include=[TENSOR])
    fit(store, name="first", steps="0:100", include=[TENSOR], maps={})
    states = {f["name"]: f["state"] for f in info(TrajectoryStore(store.path)).fits}
    assert states == {"default": "current", "first": "partial"}
    ingest(make_run([300]), store.path)
    found = info(TrajectoryStore(store.path)).fits
    assert [(f["name"], f["state"], f["steps"], f["maps"]) for f in found] == [
        ("default", "partial", [0, 100, 200], {"r2": "float16", "slope": "bfloat16"}),
        ("first", "partial", [0, 100], {}),
    ]


def test_a_fit_of_checkpoints_that_were_replaced_is_stale(store):
    fit(store, include=[TENSOR])
    root = store.path / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["ckptlin"]["checkpoints"][1]["fingerprint"] = "0" * 32
    root.write_text(json.dumps(document))
    assert [f["state"] for f in info(TrajectoryStore(store.path)).fits] == ["stale"]


def test_a_replaced_step_takes_the_fits_with_it(store, make_run, tmp_path):
    fit(store, include=[TENSOR])
    weights = weights_at(101)
    save_checkpoint(tmp_path / "run/checkpoint-100", weights)
    ingest(tmp_path / "run", store.path, replace_steps=True)
    assert info(TrajectoryStore(store.path)).fits == ()


def test_one_step_has_no_fit_to_plan_for(make_run, tmp_path):
    found = info(ingest(make_run([100]), tmp_path / "store").store)
    assert found.num_fitted > 0
    assert found.fit_memory_bytes is None
    assert found.fit_bytes_in is None


def test_a_store_without_a_weight_to_fit_is_shown_too(tmp_path):
    for step in (0, 100):
        weights = {"n": np.int64([step]), "q": np.array([1], ml_dtypes.float8_e4m3fn)}
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights, config=None)
    found = info(ingest(tmp_path / "run", tmp_path / "store").store)
    assert found.num_params == 2
    assert found.num_fitted == 0
    assert found.fit_memory_bytes is None
    assert found.architectures == ()
    assert found.files == ()


def test_tied_names_are_shown(tmp_path):
    config = {"architectures": ["A"], "tie_word_embeddings": True}
    for step in (0, 100):
        weights = {"model.embed_tokens.weight": np.float32([[step]])}
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights, config)
    found = info(ingest(tmp_path / "run", tmp_path / "store").store)
    assert found.tied == {"lm_head.weight": "model.embed_tokens.weight"}
