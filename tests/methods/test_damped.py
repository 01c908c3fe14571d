"""The damped method, against the same done to the weights themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.methods import parse_method
from tests.methods.runs import coefficients, gram_of, runs


def directly(steps, weights, target, base, ridge, width, model=None):
    """The factor, from predictions made and judged one by one; ``model`` is a trajectory of all tensors."""

    def judged(trajectory):
        along = square = total = 0.0
        reach = {}
        for n in range(2, len(steps)):
            for h in range(n, len(steps)):
                ratio = (steps[h] - steps[0]) / (steps[n - 1] - steps[0])
                wanted = (target - steps[0]) / (steps[-1] - steps[0])
                reach[n, h] = np.exp(-0.5 * ((np.log(ratio) - np.log(wanted)) / width) ** 2)
        for (n, h), weight in reach.items():
            predicted = coefficients(base, steps[:n], steps[h]) @ trajectory[:n] - trajectory[n - 1]
            true = trajectory[h] - trajectory[n - 1]
            weight = weight / max(reach.values()) / (true @ true)
            along += weight * (predicted @ true)
            square += weight * (predicted @ predicted)
            total += weight * (true @ true)
        return np.clip(along / square, 0, 1.5), total

    own, count = judged(weights)
    if model is None:
        return own
    return (count * own + ridge * judged(model)[0]) / (count + ridge)


@pytest.mark.parametrize("base", ["wls-anchored:decay=0.7", "ols", "two-point"])
@given(run=runs(min_size=4), ridge=st.sampled_from([0.0, 1.0, 10.0]), width=st.sampled_from([0.3, 0.5, 2.0]))
def test_the_factor_is_that_of_predictions_judged_one_by_one(base, run, ridge, width):
    steps, weights, target = run
    model = np.concatenate([weights, weights[::-1].cumsum(axis=0)], axis=1)
    method = f"damped:ridge={ridge},width={width},base={base}"
    move = coefficients(base, steps, target) @ weights - weights[-1]
    for pooled, trajectory in ((gram_of(model), model), (None, None)):
        found = coefficients(method, steps, target, gram_of(weights), pooled) @ weights
        expected = weights[-1] + directly(steps, weights, target, base, ridge, width, trajectory) * move
        np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(move).max() + 1e-10)


@given(run=runs(min_size=2, max_size=2))
def test_without_a_past_the_base_predicts_alone(run):
    steps, weights, target = run
    gram = gram_of(weights)
    found = coefficients("damped", steps, target, gram, gram)
    np.testing.assert_allclose(
        found, coefficients("wls-anchored", steps, target), atol=1e-12 * np.abs(found).max()
    )


@given(run=runs(min_size=5))
def test_up_to_the_last_step_the_base_predicts_alone(run):
    steps, weights, _ = run
    for when in (*steps, steps[0] - 3, (steps[-2] + steps[-1]) / 2):
        found = coefficients("damped:base=ols", steps, when, gram_of(weights))
        assert found.tolist() == coefficients("ols", steps, when).tolist()


def test_a_tensor_that_goes_back_and_forth_stays_where_it_is():
    steps = np.arange(10.0)
    weights = np.outer((-1.0) ** steps, np.ones(3))
    found = coefficients("damped:base=two-point", steps, 10.0, gram_of(weights))
    plain = coefficients("two-point", steps, 10.0)
    truth = weights[0]
    assert np.abs(found @ weights - weights[-1]).max() < 0.5 * np.abs(plain @ weights - weights[-1]).max()
    assert np.abs(weights[-1] - truth).max() == 2


def test_a_tensor_that_says_nothing_follows_the_model():
    """It moved once, at the start: every prediction of its past was to stay, and came true."""
    steps = np.arange(8.0)
    curved = np.outer(np.sqrt(steps), [1.0, 2.0])
    once = np.zeros((8, 2))
    once[1:] = 1.0
    pooled = gram_of(curved) + gram_of(once)
    found = coefficients("damped:base=dmd", steps, 14.0, gram_of(once), pooled)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found @ once, once[-1], atol=1e-9)


def test_the_ridge_draws_towards_the_whole_model():
    steps = np.arange(8.0)
    curved, line = np.outer(np.sqrt(steps), [1.0, 2.0]), np.outer(steps, [1.0, 2.0])
    base = coefficients("wls-anchored", steps, 14.0) @ curved - curved[-1]
    factors = []
    for ridge in (0, 1, 10, 1e9):
        found = coefficients(f"damped:ridge={ridge}", steps, 14.0, gram_of(curved), gram_of(line))
        factors.append(((found @ curved - curved[-1]) / base)[0])
    assert factors == sorted(factors)
    assert factors[0] < 0.8
    assert factors[-1] == pytest.approx(1)


def test_the_reach_of_the_pairs_is_that_of_the_target():
    """A run that slows down: the further the target, the less of the line comes true."""
    steps = np.arange(20.0)
    weights = np.outer(np.sqrt(steps), [1.0, 2.0])
    factors = []
    for target in (20.0, 30.0, 50.0):
        found = coefficients("damped:width=0.1,base=anchored", steps, target, gram_of(weights)) @ weights
        base = coefficients("anchored", steps, target) @ weights - weights[-1]
        factors.append(((found - weights[-1]) / base)[0])
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > factors[-1] + 0.1


def test_a_base_that_needs_more_checkpoints_has_fewer_pairs():
    spec = parse_method("damped:base=polynomial:degree=4")
    assert spec.min_steps == 5
    steps = np.arange(6.0)
    gram = gram_of(np.random.default_rng(0).normal(size=(6, 3)))
    assert spec.coefficients(steps, 7.0, gram, gram).sum() == pytest.approx(1)
