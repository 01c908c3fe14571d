"""What an extrapolation must give, worked out in numpy and exact fractions; and runs to try it on."""

import json
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ckptlin.dtypes import TensorDType, from_numpy
from tests.exact import nearest
from tests.runs import MODEL as PLAIN_MODEL
from tests.runs import save_checkpoint
from tests.tiny_models import load_weights

__all__ = [
    "COPIED",
    "MODEL",
    "NORMS",
    "STEPS",
    "as_rounded",
    "assert_predicts",
    "assert_same_weights",
    "load_bytes",
    "predict",
    "rules_of",
    "two_step_run",
]

STEPS = (0, 100, 200, 300, 400)
MODEL = {
    **PLAIN_MODEL,
    "model.layers.0.input_layernorm.weight": ((5,), ml_dtypes.bfloat16),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ((4,), np.float32),
    "model.mask": ((3,), np.bool_),
}
COPIED = {"model.counts", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.mask"}
NORMS = {"model.norm.weight", "model.layers.0.input_layernorm.weight"}


def predict(rows: Any, coefficients: Sequence[float]) -> np.ndarray:
    """The weighted sum, as `ckptlin.kernels.weighted_sum` defines it, in numpy's float64."""
    rows = np.asarray(rows).astype(np.float64)
    reference = rows[np.flatnonzero(coefficients)[0]]
    moved = sum(a * (row - reference) for a, row in zip(coefficients, rows, strict=True) if a != 0.0)
    return reference + moved


def as_rounded(values: np.ndarray, dtype: TensorDType) -> np.ndarray:
    """Round float64 once to a dtype; the result is float64 again."""
    flat = np.ravel(values)
    return np.array([nearest(Fraction(v), dtype) for v in flat], np.float64).reshape(np.shape(values))


def assert_predicts(
    out: Path,
    trajectories: Sequence[Mapping[str, np.ndarray]],
    coefficients: Sequence[float],
    rules: Mapping[str, str],
    dtype: TensorDType | None = None,
) -> None:
    """Assert that a checkpoint holds the weighted sum, or the last value, of every tensor."""
    found = load_weights(out)
    assert found.keys() == trajectories[0].keys() == rules.keys()
    for name, values in found.items():
        rows = [weights[name] for weights in trajectories]
        source = rows[-1].dtype
        is_float = np.issubdtype(source, np.floating) or source == ml_dtypes.bfloat16
        expected_dtype = dtype.numpy if dtype is not None and is_float else source
        assert values.dtype == expected_dtype, name
        if rules[name] == "extrapolate":
            expected = as_rounded(predict(rows, coefficients), from_numpy(expected_dtype))
        elif is_float:
            expected = as_rounded(rows[-1].astype(np.float64), from_numpy(expected_dtype))
        else:
            expected = rows[-1]
        np.testing.assert_array_equal(values.astype(np.float64), expected, err_msg=name)


def rules_of(out: Path) -> dict[str, str]:
    """Return what the record says was done with each tensor."""
    return json.loads((out / "ckptlin.json").read_text())["tensors"]


def two_step_run(root: Path, first: Any, second: Any, steps: tuple[int, int] = (0, 100)) -> Path:
    """Save a run of two checkpoints of one tensor, ``w``."""
    shutil.rmtree(root, ignore_errors=True)
    for step, values in zip(steps, (first, second), strict=True):
        save_checkpoint(root / f"checkpoint-{step}", {"w": np.asarray(values)}, config=None)
    return root


def load_bytes(out: Path) -> dict[str, bytes]:
    """Return the files of weights, and their index."""
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors*")}


def assert_same_weights(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Assert that weights are the same, bit for bit."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes(), name
