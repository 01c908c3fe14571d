import json
import os
import shutil

import numpy as np
import pytest

from ckptlin.checkpoints import WeightFilePlan
from ckptlin.dtypes import DTYPES
from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    MemoryBudgetError,
    OutputExistsError,
    SelectionError,
)
from ckptlin.export import export
from ckptlin.ingest import ingest
from ckptlin.store.store import TrajectoryStore, block_key
from tests.runs import file_contents, save_checkpoint
from tests.strategies import special_bits
from tests.tiny_models import save_model_run

STEPS = (0, 100, 200)


@pytest.fixture(scope="module", params=["single", "sharded"])
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("export") / "run"
    options = {"max_shard_size": "2KB"} if request.param == "sharded" else {}
    return save_model_run(root, "qwen2", is_tied=False, steps=STEPS, **options)


@pytest.fixture(scope="module")
def store(run):
    return ingest(run, run.with_name("store")).store


@pytest.mark.parametrize("step", STEPS)
def test_every_file_comes_back_byte_for_byte(run, store, tmp_path, step):
    result = export(store, step, tmp_path / "out", num_workers=3)
    original = file_contents(run / f"checkpoint-{step}")
    assert file_contents(tmp_path / "out") == original
    sizes = [len(data) for name, data in original.items() if name.endswith(".safetensors")]
    assert result.num_bytes == sum(sizes)
    assert result.step == step


def test_the_run_need_not_be_there_any_more(run, store, tmp_path):
    original = file_contents(run / "checkpoint-100")
    hidden = run.with_name("hidden")
    run.rename(hidden)
    try:
        export(TrajectoryStore(store.path), 100, tmp_path / "out")
    finally:
        hidden.rename(run)
    assert file_contents(tmp_path / "out") == original


def test_every_bit_of_every_type_comes_back(tmp_path):
    """Zeros of both signs, NaN payloads, subnormals, integers, tensors of no dimension and no element."""
    rng = np.random.default_rng(0)
    for step in (0, 100):
        weights = {"nothing": np.empty((3, 0), np.float32)}
        for dtype in DTYPES:
            words = np.array(special_bits(dtype), dtype.bits)
            weights[dtype.zarr] = rng.permutation(words).view(dtype.numpy)
            weights[f"{dtype.zarr}.scalar"] = np.array(words[step % words.size]).view(dtype.numpy)
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights, config=None)
    store = ingest(tmp_path / "run", tmp_path / "store").store
    for step in (0, 100):
        export(store, step, tmp_path / f"out-{step}")
        assert file_contents(tmp_path / f"out-{step}") == file_contents(tmp_path / "run" / f"checkpoint-{step}")


def test_files_of_other_names_and_orders_come_back_too(tmp_path):
    """What export gives back is the file that was there, not one that this library would write."""
    for step in (0, 100):
        directory = save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", {"a": np.float32([step])})
        header = b'{"b":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"a":{"shape":[1],"dtype":"F32"  ,'
        header += b'"data_offsets":[2,6]},"__metadata__":{"who":"somebody"}}   '
        prefix = WeightFilePlan("w", header).layout.prefix
        (directory / "model.safetensors").unlink()
        (directory / "weights.safetensors").write_bytes(prefix + b"ab" + bytes([step, 1, 2, 3]))
    store = ingest(tmp_path / "run", tmp_path / "store").store
    export(store, 100, tmp_path / "out")
    found = file_contents(tmp_path / "out")
    index = json.loads(found.pop("model.safetensors.index.json"))  # without it, nothing would load such a name
    assert index["weight_map"] == {"a": "weights.safetensors", "b": "weights.safetensors"}
    assert found == file_contents(tmp_path / "run/checkpoint-100")


def test_a_step_that_is_not_there_is_named_with_those_that_are(store, tmp_path):
    with pytest.raises(SelectionError, match=r"step 150 is not in .*, which holds 3 steps, 0 to 200"):
        export(store, 150, tmp_path / "out")


def test_an_output_that_exists_is_replaced_only_on_request(run, store, tmp_path):
    export(store, 0, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="give another directory, or --overwrite"):
        export(store, 100, tmp_path / "out")
    assert file_contents(tmp_path / "out") == file_contents(run / "checkpoint-0")
    export(store, 100, tmp_path / "out", overwrite=True)
    assert file_contents(tmp_path / "out") == file_contents(run / "checkpoint-100")
    assert os.listdir(tmp_path) == ["out"]


def test_a_damaged_chunk_leaves_nothing_half_made(store, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    copy = TrajectoryStore(tmp_path / "store")
    (block,) = copy.blocks("model.norm.weight")
    path = copy.path / block_key(block, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptChunkError, match=r"tensor `model.norm.weight` at steps 0 to 200"):
        export(copy, 100, tmp_path / "out")
    assert os.listdir(tmp_path) == ["store"]


def test_what_does_not_fit_into_memory_or_makes_no_sense_is_refused(store, tmp_path):
    with pytest.raises(MemoryBudgetError, match=r"export needs at least .*; give --memory [0-9]+MB or more"):
        export(store, 100, tmp_path / "out", memory_bytes=1 << 20)
    with pytest.raises(InputError, match="--workers must be at least 1, not 0"):
        export(store, 100, tmp_path / "out", num_workers=0)
    assert os.listdir(tmp_path) == []
