import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.gram_matrices import GramMatrices
from tests.grams import grams_of


def a_run(seed=0, num_steps=7, num_params=5):
    rng = np.random.default_rng(seed)
    names = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    steps = tuple(int(s) for s in np.cumsum(rng.integers(1, 50, num_steps)))
    return steps, {name: rng.normal(size=(num_steps, num_params)).cumsum(axis=0) for name in names}


@given(seed=st.integers(0, 10**6), rows=st.sets(st.integers(0, 6), min_size=1).map(sorted))
def test_a_window_is_what_its_checkpoints_alone_would_give(seed, rows):
    steps, weights = a_run(seed)
    found = grams_of(steps, weights).window(rows)
    expected = grams_of([steps[row] for row in rows], {name: w[rows] for name, w in weights.items()})
    assert found.steps == expected.steps
    for name, matrix in expected.matrices.items():
        np.testing.assert_allclose(
            found.matrices[name], matrix, rtol=0, atol=1e-12 * np.abs(weights[name]).max() ** 2 * 5
        )
        assert not found.matrices[name][0].any()
        assert not found.matrices[name][:, 0].any()
        np.testing.assert_array_equal(found.matrices[name], found.matrices[name].T)
        np.testing.assert_array_equal(found.samples[name], expected.samples[name])


def test_a_window_that_keeps_the_first_step_keeps_every_bit():
    grams = grams_of(*a_run())
    part = grams.window([0, 2, 3])
    for name in grams.names:
        expected = grams.matrices[name][np.ix_([0, 2, 3], [0, 2, 3])]
        assert part.matrices[name].tobytes() == expected.tobytes()


def test_the_whole_model_is_the_sum_over_tensors():
    steps, weights = a_run()
    together = np.concatenate(list(weights.values()), axis=1)
    np.testing.assert_allclose(
        grams_of(steps, weights).total(), grams_of(steps, {"all": together}).matrices["all"]
    )


def test_tensors_are_grouped_by_what_they_are_within_a_layer():
    grams = grams_of(*a_run())
    assert grams.kinds() == {
        "mlp.up_proj": ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        "norm": ("model.norm.weight",),
    }


def test_the_stack_has_the_order_of_the_names():
    grams = grams_of(*a_run())
    assert grams.stack().shape == (3, 7, 7)
    for matrix, name in zip(grams.stack(), grams.names, strict=True):
        np.testing.assert_array_equal(matrix, grams.matrices[name])


def test_no_tensors_are_an_empty_stack_and_a_sum_of_zero():
    grams = GramMatrices((0, 10), {}, {}, {}, {})
    assert grams.stack().shape == (0, 2, 2)
    np.testing.assert_array_equal(grams.total(), np.zeros((2, 2)))


def test_it_shows_itself_in_one_line():
    steps, weights = a_run()
    expected = f"GramMatrices(7 steps, {steps[0]} to {steps[-1]}; 3 tensors, 15 parameters)"
    assert repr(grams_of(steps, weights)) == expected


@pytest.mark.parametrize("rows", [[], [2, 1], [1, 1], [-1, 2], [0, 7]])
def test_rows_that_are_no_window_are_refused(rows):
    with pytest.raises(InputError, match="are no window of 7 steps; give them ascending"):
        grams_of(*a_run()).window(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0, 20, 10)}, r"must ascend, and \[0, 20, 10\] do not"),
        ({"matrices": {"w": np.zeros((2, 2))}}, r"tensor `w` is float64 of shape \(2, 2\); 3 steps need"),
        ({"matrices": {"w": np.zeros((3, 3), np.float32)}}, "tensor `w` is float32"),
        ({"num_params": {}}, "tensor `w` came without num_params or rounding"),
        ({"samples": {"w": np.zeros((2, 4))}}, r"sample of tensor `w` has shape \(2, 4\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, message):
    parts = {
        "steps": (0, 10, 20),
        "matrices": {"w": np.zeros((3, 3))},
        "num_params": {"w": 4},
        "rounding": {"w": 0.0},
        "samples": {},
    }
    with pytest.raises(InputError, match=message):
        GramMatrices(**{**parts, **change})
