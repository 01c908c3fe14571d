"""Methods that draw a line or a polynomial: against exact fractions, numpy's fits, and each other."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.methods.runs import coefficients, steps_of_a_run, targets


@given(steps=steps_of_a_run(), target=targets)
def test_two_point_takes_the_first_and_the_last_alone(steps, target):
    found = coefficients("two-point", steps, target)
    alpha = (target - steps[0]) / (steps[-1] - steps[0])
    assert found[-1] == alpha
    assert found[0] == 1.0 - alpha
    assert not found[1:-1].any()


@given(steps=steps_of_a_run())
def test_two_point_at_either_end_is_that_checkpoint(steps):
    first, last = coefficients("two-point", steps, steps[0]), coefficients("two-point", steps, steps[-1])
    assert first.tolist() == [1.0] + [0.0] * (len(steps) - 1)
    assert last.tolist() == [0.0] * (len(steps) - 1) + [1.0]


@given(steps=steps_of_a_run(3, 12), target=targets, seed=st.integers(0, 1000))
def test_ols_gives_what_numpy_fits(steps, target, seed):
    assume(steps[-1] - steps[0] > 10)
    values = np.random.default_rng(seed).normal(size=len(steps))
    centre, scale = np.mean(steps), np.std(steps)
    fitted = np.polyfit((np.array(steps) - centre) / scale, values, 1)
    expected = np.polyval(fitted, (target - centre) / scale)
    found = coefficients("ols", steps, target)
    assert found @ values == pytest.approx(expected, abs=1e-11 * (np.abs(found).sum() + 1))


@given(steps=steps_of_a_run(), target=targets)
@example(steps=[0, 3, 4], target=7)
def test_ols_coefficients_are_those_of_exact_arithmetic(steps, target):
    mean = Fraction(sum(steps), len(steps))
    square = sum((s - mean) ** 2 for s in steps)
    exact = [Fraction(1, len(steps)) + (s - mean) * (target - mean) / square for s in steps]
    found = coefficients("ols", steps, target)
    np.testing.assert_allclose(found, [float(a) for a in exact], rtol=1e-9, atol=1e-13 * np.abs(found).max())


@given(steps=steps_of_a_run(2, 2), target=targets)
def test_ols_of_two_checkpoints_is_two_point_to_the_bit(steps, target):
    assert coefficients("ols", steps, target).tobytes() == coefficients("two-point", steps, target).tobytes()


@given(steps=steps_of_a_run())
def test_anchored_at_the_last_step_is_the_last_checkpoint(steps):
    found = coefficients("anchored", steps, steps[-1])
    assert found[-1] == 1.0
    assert not found[:-1].any()


@given(steps=steps_of_a_run(), target=targets)
def test_anchored_is_the_last_checkpoint_plus_the_slope_of_ols(steps, target):
    slope = coefficients("ols", steps, target) - coefficients("ols", steps, steps[-1])
    expected = slope + np.eye(len(steps))[-1]
    found = coefficients("anchored", steps, target)
    np.testing.assert_allclose(found, expected, atol=1e-10 * (np.abs(found).max() + 1))


@pytest.mark.parametrize("name", ["wls", "wls-anchored"])
@given(steps=steps_of_a_run(3, 12), target=targets)
def test_without_decay_late_checkpoints_count_no_more(name, steps, target):
    found = coefficients(f"{name}:decay=1", steps, target)
    expected = coefficients({"wls": "ols", "wls-anchored": "anchored"}[name], steps, target)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * (np.abs(expected).max() + 1))


@given(steps=steps_of_a_run(3, 12), target=targets, decay=st.floats(0.2, 1), seed=st.integers(0, 1000))
def test_wls_gives_what_numpy_fits_with_its_weights(steps, target, decay, seed):
    steps = np.array(steps, np.float64)
    values = np.random.default_rng(seed).normal(size=steps.size)
    weights = decay ** np.arange(steps.size - 1, -1, -1)
    centre = np.average(steps, weights=weights)
    scale = np.sqrt(np.average((steps - centre) ** 2, weights=weights))
    # polyfit takes the weights of residuals, not of their squares.
    fitted = np.polyfit((steps - centre) / scale, values, 1, w=np.sqrt(weights))
    for name, expected in (
        ("wls", np.polyval(fitted, (target - centre) / scale)),
        ("wls-anchored", values[-1] + fitted[0] * (target - steps[-1]) / scale),
    ):
        found = coefficients(f"{name}:decay={decay!r}", steps, target)
        assert found @ values == pytest.approx(expected, abs=1e-9 * (np.abs(found).sum() + 1)), name


@given(steps=steps_of_a_run(2, 2), target=targets)
def test_every_line_through_two_checkpoints_is_that_of_two_point(steps, target):
    expected = coefficients("two-point", steps, target)
    move = np.outer([0.0, 1.0], [0.0, 1.0])
    assert coefficients("wls", steps, target).tobytes() == expected.tobytes()
    for name in ("wls-anchored", "anchored", "polynomial:degree=1", "relex", "damped"):
        found = coefficients(name, steps, target, move)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@given(
    gaps=st.lists(st.integers(1, 20), min_size=5, max_size=15),
    ahead=st.integers(-50, 100),
    seed=st.integers(0, 1000),
)
def test_polynomial_gives_what_numpy_fits(degree, gaps, ahead, seed):
    steps = np.cumsum([0, *gaps])
    target = steps[-1] + ahead
    values = np.random.default_rng(seed).normal(size=steps.size)
    fitted = np.polynomial.Polynomial.fit(steps, values, degree)
    found = coefficients(f"polynomial:degree={degree}", steps, target)
    assert found @ values == pytest.approx(fitted(target), abs=1e-9 * (np.abs(found).sum() + 1))


@given(gaps=st.lists(st.integers(1, 20), min_size=3, max_size=8), ahead=st.integers(-50, 100), data=st.data())
def test_a_polynomial_is_continued_exactly(gaps, ahead, data):
    steps = np.cumsum([0, *gaps])
    degree = data.draw(st.integers(1, len(gaps)))
    curve = np.polynomial.Polynomial(data.draw(st.lists(st.integers(-5, 5), min_size=1, max_size=degree + 1)))
    found = coefficients(f"polynomial:degree={degree}", steps, steps[-1] + ahead)
    scale = steps[-1] + abs(ahead)
    values, expected = curve(steps / scale), curve((steps[-1] + ahead) / scale)
    assert found @ values == pytest.approx(expected, abs=1e-10 * (np.abs(found) @ np.abs(values) + 1))


def test_a_polynomial_of_full_degree_goes_through_every_checkpoint():
    steps = [0, 10, 30, 70]
    for row, step in enumerate(steps):
        found = coefficients("polynomial:degree=3", steps, step)
        np.testing.assert_allclose(found, np.eye(4)[row], atol=1e-12)


@given(steps=steps_of_a_run(2, 12), decay=st.floats(0.2, 1))
def test_wls_anchored_at_the_last_step_is_the_last_checkpoint(steps, decay):
    found = coefficients(f"wls-anchored:decay={decay!r}", steps, steps[-1])
    assert found.tolist() == [0.0] * (len(steps) - 1) + [1.0]
