"""Prediction intervals against scipy and a direct computation from the weights."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ckptlin.errors import InputError
from ckptlin.intervals import prediction_intervals
from tests.grams import grams_of
from tests.strategies import training_steps


def direct(steps, weights, target, level):
    """Half width of each parameter, by scipy's regression of it on the step."""
    x = np.array(steps, np.float64)
    found = []
    for column in weights.reshape(len(steps), -1).T:
        line = stats.linregress(x, column)
        residual = column - line.intercept - line.slope * x
        s = np.sqrt(residual @ residual / (x.size - 2))
        spread = np.sqrt(1 + 1 / x.size + (target - x.mean()) ** 2 / ((x - x.mean()) @ (x - x.mean())))
        found.append(stats.t.ppf(0.5 + level / 2, x.size - 2) * s * spread)
    return np.array(found)


@given(
    steps=training_steps(max_steps=15).filter(lambda s: len(s) > 2),
    seed=st.integers(0, 2**32),
    level=st.sampled_from([0.5, 0.9, 0.95]),
    reach=st.integers(-100, 300),
)
def test_widths_are_those_of_a_regression_of_every_parameter(steps, seed, level, reach):
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=(len(steps), n)).cumsum(axis=0) for name, n in (("a", 5), ("b", 3))}
    target = steps[0] + (steps[-1] - steps[0]) * reach // 100
    found = prediction_intervals(grams_of(steps, weights), target, level=level)
    widths = {name: direct(steps, w, target, level) for name, w in weights.items()}
    for tensor in found.tensors:
        rms = np.sqrt((widths[tensor.name] ** 2).mean())
        assert tensor.half_width_rms == pytest.approx(rms, rel=1e-6)
        line = np.array([np.polyval(np.polyfit(steps, w, 1), target) for w in weights[tensor.name].T])
        moved = np.sqrt(((line - weights[tensor.name][-1]) ** 2).mean())
        assert tensor.move_rms == pytest.approx(moved, rel=1e-5, abs=1e-9)
        assert tensor.relative == pytest.approx(tensor.half_width_rms / tensor.move_rms)
    every = np.concatenate(list(widths.values()))
    assert found.model.num_params == 8
    assert found.model.half_width_rms == pytest.approx(np.sqrt((every**2).mean()), rel=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_of_independent_residuals_the_promised_share_lies_within(level):
    """On drift with white noise: coverage is what the level says, to within chance."""
    rng = np.random.default_rng(0)
    steps, target, num_params = tuple(range(0, 80, 10)), 120, 40_000
    drift = rng.normal(size=num_params)
    weights = np.array(steps)[:, None] * drift + rng.normal(size=(len(steps), num_params))
    truth = target * drift + rng.normal(size=num_params)
    found = prediction_intervals(grams_of(steps, {"w": weights}), target, level=level)
    slope, intercept = np.polyfit(steps, weights, 1)
    residual = weights - intercept - np.outer(steps, slope)
    s = np.sqrt((residual**2).sum(axis=0) / found.degrees)
    within = np.abs(slope * target + intercept - truth) <= found.quantile * s * np.sqrt(found.leverage)
    assert within.mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / num_params))
    assert found.tensors[0].residual_rms == pytest.approx(1, rel=0.02)


def test_widths_are_compared_with_the_move_of_the_method_that_was_used():
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 6)).cumsum(axis=0), "kept": rng.normal(size=(4, 2))}
    grams = grams_of((0, 1, 2, 3), weights)
    a = np.array([-1.0, 0.0, 0.0, 2.0])
    found = prediction_intervals(grams, 6, {"w": a, "kept": np.array([0.0, 0.0, 0.0, 1.0])})
    moved, kept = found.tensors
    assert moved.move_rms == pytest.approx(np.sqrt(((a @ weights["w"] - weights["w"][-1]) ** 2).mean()))
    assert (kept.move_rms, kept.relative) == (0.0, None)
    assert kept.half_width_rms > 0


def test_a_tensor_that_never_moved_has_no_width():
    grams = grams_of((0, 1, 2), {"w": np.ones((3, 4))})
    (tensor,) = prediction_intervals(grams, 5).tensors
    assert (tensor.half_width_rms, tensor.move_rms, tensor.relative) == (0.0, 0.0, None)


def test_a_line_has_no_width():
    weights = {"w": np.outer([0.0, 10.0, 20.0, 50.0], [1.0, -2.0, 3.0]) + 7.0}
    (tensor,) = prediction_intervals(grams_of((0, 10, 20, 50), weights), 90).tensors
    assert tensor.half_width_rms == pytest.approx(0, abs=1e-5)
    assert tensor.move_rms == pytest.approx(np.sqrt((40.0**2 * np.array([1, 4, 9])).mean()))


def test_two_checkpoints_leave_no_residual():
    grams = grams_of((0, 1), {"w": np.ones((2, 4))})
    with pytest.raises(InputError, match="at least 3 checkpoints, and 2 were selected"):
        prediction_intervals(grams, 5)


def test_a_file_says_what_the_object_says(tmp_path):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, 6)) for name in ("a, b", "ä")}
    found = prediction_intervals(grams_of((0, 1, 2, 3), weights), 6)
    found.save(tmp_path / "a.json")
    found.save(tmp_path / "a.csv")
    assert json.loads((tmp_path / "a.json").read_text()) == found.to_dict()
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["model", "a, b", "ä"]
    for row, expected in zip(rows, found.to_rows(), strict=True):
        assert row == {key: str(value) for key, value in expected.items()}
    with pytest.raises(InputError, match=r"a\.txt must end in \.json or \.csv"):
        found.save(tmp_path / "a.txt")
    with pytest.raises(InputError, match="lies in no directory that exists"):
        found.save(tmp_path / "none" / "a.csv")
