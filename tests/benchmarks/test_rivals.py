"""The rivals compute what ckptlin computes, so that their times can be compared."""

import json

import ml_dtypes
import numpy as np
import pytest

from benchmarks.rivals.mergekit_linear import merge_command
from benchmarks.rivals.numpy_memmap import whole_r2
from benchmarks.rivals.sampled_lstsq import sampled_r2
from benchmarks.synthetic import Architecture, make_run
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit
from ckptlin.source import open_source
from tests.tiny_models import load_weights

ARCH = Architecture(hidden=16, layers=2, heads=2, kv_heads=1, intermediate=32, vocab=256)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("rivals") / "run"
    make_run(path, ARCH, checkpoints=8)
    return path


@pytest.fixture(scope="module")
def model(run):
    """The model's figures as ckptlin has them."""
    return fit(open_source(str(run))).summary.model()


def test_numpy_finds_the_same_r2(run, model):
    count, mean = whole_r2(run, block=1000)
    assert count == model.moved.count
    assert mean == pytest.approx(model.moved.mean, abs=1e-6)


@pytest.mark.parametrize("polyfit", [False, True])
def test_xarray_and_dask_find_the_same_r2(run, model, tmp_path, polyfit):
    pytest.importorskip("xarray", reason="needs the extra `xarray`")
    from benchmarks.rivals import xarray_dask

    xarray_dask.write_zarr(run, tmp_path / "plain.zarr")
    count, mean = xarray_dask.whole_r2(tmp_path / "plain.zarr", polyfit=polyfit)
    assert count == model.moved.count
    assert mean == pytest.approx(model.moved.mean, abs=1e-6)


def test_the_script_that_samples_everything_finds_the_same_r2_of_the_filtered_weights(run):
    # Biases are not in the script's population: their names do not end in `.weight`.
    model = fit(open_source(str(run)), exclude=["*.bias"]).summary.model()
    r2 = sampled_r2(run, share=1.0)
    assert len(r2) == model.paper.count > 0
    assert r2.mean().item() == pytest.approx(model.paper.mean, abs=1e-6)


def test_the_script_samples_the_share_it_was_asked_for(run):
    assert 0 < len(sampled_r2(run, share=0.5)) < len(sampled_r2(run, share=1.0))


def test_transformers_writes_the_same_model_within_a_unit_in_the_last_place(run, tmp_path):
    from benchmarks.rivals.transformers_sum import extrapolate_models

    extrapolate_models(run / "checkpoint-100", run / "checkpoint-300", 2.5, tmp_path / "sum")
    extrapolate(open_source(str(run)), 600, tmp_path / "ours", method="two-point", steps="100,300", keep=[])
    ours, theirs = load_weights(tmp_path / "ours"), load_weights(tmp_path / "sum")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype == ml_dtypes.bfloat16
        found, expected = ours[name].astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=2.0**-7, atol=1e-9, err_msg=name)
        assert (found == expected).mean() > 0.99


def test_mergekit_is_asked_for_the_two_point_line(tmp_path):
    out = tmp_path / "out"
    command = merge_command(tmp_path / "venv", tmp_path / "a", tmp_path / "b", 2.0, out)
    assert command[0] == str(tmp_path / "venv/bin/mergekit-yaml")
    config = json.loads((tmp_path / "out.yml").read_text())
    assert [model["parameters"]["weight"] for model in config["models"]] == [-1.0, 2.0]
