"""A store read by zarr and xarray, in processes that never import ckptlin themselves."""

import hashlib
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ckptlin.dtypes import DTYPES
from ckptlin.gram import gram
from ckptlin.ingest import ingest
from ckptlin.naming import encode_name
from tests.runs import save_checkpoint, weights_at
from tests.strategies import special_bits

STEPS = (0, 7, 100)
# A row of more than a chunk's 2^20 parameters, so that the last dimension is cut.
WIDE = (2, (1 << 20) + 5)


def all_weights(step):
    rng = np.random.default_rng(step)
    weights = {
        f"kind.{dtype.zarr}": rng.choice(np.array(special_bits(dtype), dtype.bits), (6, 5)).view(dtype.numpy)
        for dtype in DTYPES
    }
    weights |= {
        "no_dimensions": np.array(step, np.float32),
        "no_elements": np.zeros((0, 3), np.float32),
        "experts": rng.normal(size=(4, 3, 5)).astype(ml_dtypes.bfloat16),
        "wide": rng.integers(0, 255, WIDE).astype(np.uint8).view(ml_dtypes.float8_e5m2),
        "minus_zeros": np.full(9, -0.0, ml_dtypes.bfloat16),
        "zeros": np.zeros((2, 3), np.float16),
        "a/b": rng.normal(size=3),
    }
    return weights


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("other_readers")
    for step in STEPS:
        (root / f"run/checkpoint-{step}").mkdir(parents=True)
        safetensors.numpy.save_file(all_weights(step), root / f"run/checkpoint-{step}/model.safetensors")
    return ingest(root / "run", root / "run.zarr").store


@pytest.fixture(scope="module")
def archive(store):
    run = store.path.parent / "run"
    return ingest(run, store.path.parent / "archive.zarr", compressor="archive").store


_DESCRIBE = """
def describe(array):
    array = np.asarray(array)
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [str(array.dtype), list(array.shape), digest]
"""


def describe(array):
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [str(array.dtype), list(array.shape), digest]


@pytest.fixture(scope="module")
def expected():
    by_step = [all_weights(step) for step in STEPS]
    stacked = {encode_name(name): np.stack([w[name] for w in by_step]) for name in by_step[0]}
    return {name: describe(array) for name, array in stacked.items()}


def read_elsewhere(program, store):
    """Run a program in a fresh interpreter in which warnings are errors; return what it found."""
    prelude = f"import hashlib, json, sys, numpy as np\n{_DESCRIBE}\nstore = sys.argv[1]\nfound = {{}}\n"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{prelude}{program}\nprint(json.dumps(found))", str(store.path)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_reads_every_tensor_bit_for_bit(store, expected, consolidated):
    # Without the consolidated metadata zarr lists the directory, and warns of the file `.lock` there.
    program = f"""
import warnings
import zarr
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Object at .lock is not recognized")
    group = zarr.open_group(store, mode="r", use_consolidated={consolidated})
    names = sorted(dict(group["weights"].arrays()))
for name in names:
    found[name] = describe(group["weights"][name][...])
"""
    found = read_elsewhere(program, store)
    assert found.pop("step") == describe(np.array(STEPS))
    assert found == expected


def test_zarr_reads_every_tensor_of_an_archive(archive, expected):
    program = """
import warnings
import zarr
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3")
    weights = zarr.open_group(store, mode="r")["weights"]
    for name, array in weights.arrays():
        found[name] = describe(array[...])
"""
    found = read_elsewhere(program, archive)
    assert found.pop("step") == describe(np.array(STEPS))
    assert found == expected


def test_plain_zarr_open_finds_weights_steps_and_files(store):
    program = """
import zarr
root = zarr.open(store, mode="r")
found = {
    "groups": sorted(root.group_keys()),
    "steps": root["weights/step"][:].tolist(),
    "one": root["weights/experts"][1, 2].astype(float).tolist(),
    "header": bytes(root["files"][sorted(root["files"].array_keys())[0]][:8]).decode(),
    "version": root.attrs["ckptlin"]["format_version"],
}
"""
    found = read_elsewhere(program, store)
    header = store.checkpoints[0].files[0].header
    assert found == {
        "groups": ["files", "weights"],
        "steps": list(STEPS),
        "one": all_weights(7)["experts"][2].astype(float).tolist(),
        "header": store.read_blob(header)[:8].decode(),
        "version": 1,
    }


def test_xarray_reads_the_trajectories_with_their_steps(store, expected):
    program = """
import xarray
weights = xarray.open_zarr(store, group="weights")
for name in weights.variables:
    found[name] = describe(weights[name].values)
found["chosen"] = describe(weights["experts"].sel(step=7).values)
found["dims"] = list(weights["experts"].dims)
"""
    found = read_elsewhere(program, store)
    assert found.pop("dims") == ["step", "experts.0", "experts.1", "experts.2"]
    assert found.pop("chosen") == describe(all_weights(7)["experts"])
    assert found.pop("step") == describe(np.array(STEPS))
    assert found == expected


def test_xarray_opens_the_whole_as_a_tree(store, expected):
    """The engine is guessed from a name that ends in .zarr, and otherwise has to be named."""
    program = """
import xarray
tree = xarray.open_datatree(store)
weights = tree["weights"]
for name in weights.variables:
    found[name] = describe(weights[name].values)
tree = xarray.open_datatree(store, engine="zarr")
found["groups"] = sorted(tree.groups)
"""
    found = read_elsewhere(program, store)
    assert found.pop("groups") == ["/", "/files", "/weights"]
    assert found.pop("step") == describe(np.array(STEPS))
    assert found == expected


def test_gram_matrices_are_read_with_their_steps(tmp_path):
    model = {"experts": ((4, 3, 5), ml_dtypes.bfloat16), "a/b": ((3,), np.float32)}
    for step in STEPS:
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights_at(step, model))
    store = ingest(tmp_path / "run", tmp_path / "run.zarr").store
    grams = gram(store)
    program = """
import xarray, zarr
node = xarray.open_datatree(store)["gram/matrices"]
found["dims"] = list(node["experts"].dims)
found["steps"] = [node[name].values.tolist() for name in ("step", "step_other")]
found["chosen"] = float(node["experts"].sel(step=7, step_other=100))
group = zarr.open(store, mode="r")["gram"]
found["matrices"] = [group["matrices"][name][:].tolist() for name in ("experts", "a%2Fb")]
found["rounding"] = group["rounding"][:].tolist()
found["samples"] = group["samples/bfloat16"][:].astype(float).tolist()
found["tensors"] = group.attrs["ckptlin"]["tensors"]
"""
    assert read_elsewhere(program, store) == {
        "dims": ["step", "step_other"],
        "steps": [list(STEPS), list(STEPS)],
        "chosen": grams.matrices["experts"][1, 2],
        "matrices": [grams.matrices[name].tolist() for name in ("experts", "a/b")],
        "rounding": list(grams.rounding.values()),
        "samples": grams.samples["experts"].astype(float).tolist(),
        "tensors": list(grams.matrices),
    }


def test_an_array_is_opened_by_its_own_path_once_the_plugin_is_imported(store, expected):
    program = """
import ckptlin.store.zarr_plugin
import zarr
found = describe(zarr.open_array(store + "/weights/experts", mode="r")[:])
"""
    assert read_elsewhere(program, store) == expected["experts"]


@pytest.mark.xfail(reason="zarr 3.1.6 never loads the entry points of data types (DataTypeRegistry._lazy_load)")
def test_an_array_is_opened_by_its_own_path_alone(store, expected):
    program = """
import zarr
found = describe(zarr.open_array(store + "/weights/experts", mode="r")[:])
"""
    assert read_elsewhere(program, store) == expected["experts"]
