import dataclasses
import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.methods import METHODS, get_method

NAMES = sorted(METHODS)


def steps_of_a_run(min_size=2, max_size=30):
    return st.lists(st.integers(0, 10**6), min_size=min_size, max_size=max_size, unique=True).map(sorted)


targets = st.integers(-(10**6), 10**7)


def coefficients(name, steps, target):
    return METHODS[name].function(np.array(steps, np.float64), float(target), None)


@pytest.mark.parametrize("name", NAMES)
@given(steps=steps_of_a_run(), target=targets)
def test_coefficients_are_float64_one_a_step_and_sum_to_one(name, steps, target):
    found = coefficients(name, steps, target)
    assert found.shape == (len(steps),)
    assert found.dtype == np.float64
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-14 * len(steps) * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("name", NAMES)
@given(steps=steps_of_a_run(), target=targets, slope=st.integers(-100, 100), intercept=st.integers(-100, 100))
def test_a_straight_line_is_continued(name, steps, target, slope, intercept):
    found = coefficients(name, steps, target)
    values = slope * np.array(steps, np.float64) + intercept
    scale = np.abs(found) @ np.abs(values) + abs(slope * target) + 1
    # A small coefficient beside one of about 1 is right to a unit in the last place of 1.
    rounding = 1e-15 * np.abs(values).max()
    assert found @ values == pytest.approx(slope * target + intercept, abs=1e-13 * scale + rounding)


@pytest.mark.parametrize("name", NAMES)
@given(steps=steps_of_a_run(), target=targets)
def test_the_unit_of_the_step_does_not_matter(name, steps, target):
    in_thousands = coefficients(name, [(s + 5) / 1000 for s in steps], (target + 5) / 1000)
    found = coefficients(name, steps, target)
    np.testing.assert_allclose(in_thousands, found, rtol=1e-6, atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_are_not_changed(name):
    steps = np.array([0.0, 50.0, 200.0])
    METHODS[name].function(steps, 300.0, None)
    assert steps.tolist() == [0.0, 50.0, 200.0]


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


@pytest.mark.parametrize("name", NAMES)
def test_one_checkpoint_makes_no_line(name):
    message = f"method {name} needs at least 2 checkpoints, and only one was selected"
    with pytest.raises(InputError, match=message):
        coefficients(name, [100], 200)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_registered_under_its_name_and_says_what_it_does(name):
    entry = get_method(name)
    assert entry.name == name
    assert entry.description
    assert "\n" not in entry.description
    assert inspect.getdoc(entry.function)
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"


def test_two_point_alone_keeps_the_norms_as_the_paper_does():
    assert {name: entry.keep for name, entry in METHODS.items() if entry.keep} == {"two-point": ("norm",)}
