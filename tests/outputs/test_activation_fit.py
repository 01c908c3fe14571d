"""R² of hidden states: against float64 numpy, and beside random walks."""

import numpy as np
import pytest

from ckptlin.errors import InputError
from ckptlin.outputs import activation_store
from ckptlin.outputs.activation_fit import fit_activations
from ckptlin.outputs.states import sketch_matrix
from tests.outputs.state_steps import make_state_store

STEPS = (0, 10, 30, 40, 100)


def pearson(values, steps):
    """R² of every column, in float64."""
    x = np.asarray(steps, np.float64)
    x = x - x.mean()
    y = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    with np.errstate(invalid="ignore"):
        return (x @ y) ** 2 / ((x @ x) * (y**2).sum(axis=0))


def made_up(num_layers=3, size=40, dim=4, noise=20.0):
    rng = np.random.default_rng(0)
    steps = np.array(STEPS)[:, None, None, None]
    slope = rng.normal(size=(num_layers, size, dim))
    return (5 + slope * steps + noise * rng.normal(size=(len(STEPS), num_layers, size, dim))).astype(np.float32)


@pytest.mark.parametrize("chunk", [12, 1 << 18])
def test_figures_are_those_of_numpy(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_store, "_CHUNK_VALUES", chunk)
    values = made_up()
    fit = fit_activations(make_state_store(tmp_path / "s", values, STEPS))
    assert (fit.steps, fit.dim, fit.hidden) == (STEPS, 4, 8)
    for layer, found in enumerate(fit.layers):
        r2 = pearson(values[:, layer].reshape(len(STEPS), -1), STEPS)
        assert found.mean == pytest.approx(r2.reshape(-1, 4).mean(axis=1).mean(), abs=1e-5)
        assert found.figures.mean == pytest.approx(r2.mean(), abs=1e-5)
        assert found.figures.median == pytest.approx(np.median(r2), abs=0.01)
        assert found.figures.above_7 == pytest.approx((r2 > 0.7).mean(), abs=1e-9)
        ends = values[[0, -1], layer].astype(np.float64)
        assert found.change == pytest.approx(np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(ends[0]))
        assert (found.unchanged, found.num_moved_states) == (0, 40)


def test_what_never_moved_is_counted_and_not_taken_for_0(tmp_path):
    values = made_up()
    values[:, 0] = values[0, 0]  # a layer
    values[:, 1, :10] = values[0, 1, :10]  # states
    values[:, 1, 10, 1] = 7.0  # a coordinate
    still, some, all_moved = fit_activations(make_state_store(tmp_path / "s", values, STEPS)).layers
    assert (still.unchanged, still.num_moved_states, still.mean, still.figures.median) == (160, 0, None, None)
    assert (still.null.count, still.change) == (0, 0.0)
    assert (some.unchanged, some.num_moved_states) == (41, 30)
    r2 = pearson(values[:, 1].reshape(len(STEPS), -1), STEPS).reshape(-1, 4)[10:]
    assert some.mean == pytest.approx(np.nanmean(r2, axis=1).mean(), abs=1e-5)
    assert all_moved.unchanged == 0


def test_random_walks_look_like_their_null(tmp_path):
    rng = np.random.default_rng(1)
    steps = tuple(range(0, 210, 10))
    walks = 1 + np.cumsum(rng.normal(size=(len(steps), 1, 3000, 4)), axis=0) * 1e-2
    [layer] = fit_activations(make_state_store(tmp_path / "s", walks, steps)).layers
    assert layer.figures.median == pytest.approx(layer.null.median, abs=0.03)
    assert layer.figures.above_7 == pytest.approx(layer.null.above_7, abs=0.03)
    assert layer.null.above_7 == pytest.approx(0.26, abs=0.03)


def test_a_window_is_fitted_alone(tmp_path):
    store = make_state_store(tmp_path / "s", made_up(), STEPS)
    fit = fit_activations(store, steps="0:40")
    assert fit.steps == (0, 10, 30, 40)
    expected = pearson(store.read_states(2, fit.steps).reshape(4, -1), fit.steps)
    assert fit.layers[2].figures.mean == pytest.approx(expected.mean(), abs=1e-5)
    with pytest.raises(InputError, match="--steps 0 selects 1"):
        fit_activations(store, steps="0")
    single = make_state_store(tmp_path / "one", made_up()[:1], STEPS[:1])
    with pytest.raises(InputError, match="a fit needs at least 2 steps"):
        fit_activations(single)


def test_the_sketch_changes_the_mean_little(tmp_path):
    """States of 64 coordinates that all move along lines of their own, with noise of their own size."""
    rng = np.random.default_rng(2)
    steps = tuple(range(0, 210, 10))
    slopes, sizes = rng.normal(size=(800, 64)), rng.exponential(size=(800, 1))
    states = np.array(steps)[:, None, None] * slopes + 60 * sizes * rng.normal(size=(len(steps), 800, 64))
    sketched = []
    for seed in (0, 1, 2):
        values = (states @ sketch_matrix(64, 32, layer=0, seed=seed))[:, None]
        sketched.append(fit_activations(make_state_store(tmp_path / str(seed), values, steps)).layers[0])
    whole = fit_activations(make_state_store(tmp_path / "whole", states[:, None], steps)).layers[0]
    assert 0.4 < whole.mean < 0.9
    for layer in sketched:
        assert layer.mean == pytest.approx(whole.mean, abs=0.01)
        assert layer.figures.median == pytest.approx(whole.figures.median, abs=0.02)
