"""Two-point extrapolation beside mergekit's linear merge, equal up to one rounding.

mergekit asks for versions of its own, so its own program is run only where an environment holds it:
``CKPTLIN_MERGEKIT`` names one, such as the one that ``python -m benchmarks.compare --mergekit`` makes.  The
arithmetic that it does is held against in any case.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.rivals.mergekit_linear import MERGEKIT, merge_command
from ckptlin.extrapolate import extrapolate
from ckptlin.source import open_source
from tests.tiny_models import load_weights, save_model_run

ALPHAS = (2.0, 1.75, 0.3)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("mergekit") / "run"
    return save_model_run(root, "llama", is_tied=False, steps=(0, 100), dtype=request.param)


def ours(run, alpha, out):
    extrapolate(open_source(run), round(100 * alpha), out, method="two-point", keep=())
    return load_weights(out)


def assert_equal_up_to_one_rounding(found, theirs, first, last, alpha):
    """In bfloat16 a unit where theirs rounds float32's result to the other side; else float32's own errors."""
    assert found.keys() == theirs.keys()
    num_same = num_params = 0
    for name, expected in theirs.items():
        assert found[name].dtype == expected.dtype
        a, b = found[name].astype(np.float64), expected.astype(np.float64)
        # Each product is rounded once, and so is their sum: half a unit of float32 each.
        size = abs(1 - alpha) * np.abs(first[name].astype(np.float64)) + alpha * np.abs(
            last[name].astype(np.float64)
        )
        bound = 2.0**-24 * (size + np.abs(b)) * 1.5
        if expected.dtype != np.float32:
            above = np.abs(b) * 2.0**-7
            bound = np.where(a == b, 0.0, above)
        assert (np.abs(a - b) <= bound).all(), name
        num_same += int((a == b).sum())
        num_params += a.size
    assert num_same > (0.998 if first[name].dtype != np.float32 else 0.5) * num_params


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_point_is_the_arithmetic_of_a_linear_merge(run, tmp_path, alpha):
    """As mergekit 0.1.5 does it: addcmul of each model in float32, divided by the sum of the weights, cast."""
    first, last = (load_weights(run / f"checkpoint-{step}") for step in (0, 100))
    theirs = {}
    for name, values in first.items():
        weight = torch.tensor([1 - alpha, alpha], dtype=torch.float32)
        total = torch.zeros(values.shape, dtype=torch.float32)
        for w, model in zip(weight, (first, last), strict=True):
            total.addcmul_(torch.from_numpy(model[name].astype(np.float32)), w)
        merged = total.div_(weight.sum()).numpy()
        theirs[name] = merged.astype(values.dtype)
    assert_equal_up_to_one_rounding(ours(run, alpha, tmp_path / "ours"), theirs, first, last, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_two_point_is_what_mergekit_writes(run, tmp_path, alpha):
    venv = Path(os.environ.get("CKPTLIN_MERGEKIT", ""))
    if not (venv / "bin/mergekit-yaml").exists():
        pytest.skip(f"needs {MERGEKIT} in an environment of its own, named by CKPTLIN_MERGEKIT")
    dtype = str(next(iter(load_weights(run / "checkpoint-0").values())).dtype)
    command = merge_command(
        venv, run / "checkpoint-0", run / "checkpoint-100", alpha, tmp_path / "merged", dtype=dtype
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    first, last = (load_weights(run / f"checkpoint-{step}") for step in (0, 100))
    theirs = load_weights(tmp_path / "merged")
    assert_equal_up_to_one_rounding(ours(run, alpha, tmp_path / "ours"), theirs, first, last, alpha)
