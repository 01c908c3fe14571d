"""Averages of checkpoints, against the recurrences that define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.runs import coefficients, runs


@given(run=runs(min_size=3), k=st.integers(1, 3))
def test_lawa_is_the_mean_of_the_last(run, k):
    steps, weights, target = run
    found = coefficients(f"lawa:k={k}", steps, target) @ weights
    np.testing.assert_allclose(found, weights[-k:].mean(axis=0), atol=1e-12)


@given(run=runs(), decay=st.floats(0, 0.99))
def test_ema_follows_its_recurrence(run, decay):
    steps, weights, target = run
    average = weights[0]
    for row in weights[1:]:
        average = decay * average + (1 - decay) * row
    np.testing.assert_allclose(
        coefficients(f"ema:decay={decay!r}", steps, target) @ weights, average, atol=1e-12
    )


@given(
    run=runs(),
    ema_power=st.floats(0, 2),
    bias_power=st.floats(0, 2),
    lag=st.floats(1, 20),
    multiplier=st.floats(0, 5),
)
def test_bema_follows_its_recurrence(run, ema_power, bias_power, lag, multiplier):
    steps, weights, target = run
    average, found = weights[0], None
    for t, row in enumerate(weights):
        share = (lag + multiplier * t) ** -ema_power
        if t:
            average = (1 - share) * average + share * row
        found = average + (lag + multiplier * t) ** -bias_power * (row - weights[0])
    method = f"bema:{ema_power=},{bias_power=},{lag=},{multiplier=}"
    np.testing.assert_allclose(coefficients(method, steps, target) @ weights, found, atol=1e-12)


@pytest.mark.parametrize("name", ["ema", "bema", "lawa:k=1", "persistence"])
def test_one_checkpoint_is_its_own_average(name):
    assert coefficients(name, [100], 200).tolist() == [1.0]


@pytest.mark.parametrize("name", ["persistence", "lawa", "ema", "bema"])
@given(run=runs(min_size=3))
def test_the_target_does_not_matter_to_an_average(name, run):
    steps, _, target = run
    assert coefficients(name, steps, target).tolist() == coefficients(name, steps, steps[0]).tolist()
