"""What holds for every method."""

import dataclasses
import inspect
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.methods import METHODS, get_method, parse_method
from tests.methods.runs import NAMES, SPECS, coefficients, gram_of, runs, steps_of_a_run, targets

LINEAR = [text for text in SPECS if parse_method(text).is_linear]
BY_STEPS = [text for text in SPECS if not parse_method(text).needs_gram]
BY_GRAM = [text for text in SPECS if parse_method(text).needs_gram]
SIMPLE = ["ols", "two-point", "anchored", "wls", "wls-anchored"]


@pytest.mark.parametrize("method", SPECS)
@given(run=runs(min_size=5))
def test_coefficients_are_float64_one_a_step_and_sum_to_one(method, run):
    steps, weights, target = run
    for when in (target, steps[0] - 7.5, steps[0], steps[1], (steps[1] + steps[2]) / 2, steps[-1]):
        found = coefficients(method, steps, when, gram_of(weights), gram_of(weights))
        assert found.shape == (steps.size,)
        assert found.dtype == np.float64
        assert math.fsum(found) == pytest.approx(1.0, abs=1e-12 * steps.size * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("method", SIMPLE)
@given(steps=steps_of_a_run(), target=targets)
def test_coefficients_of_lines_sum_to_one_at_any_steps(method, steps, target):
    found = coefficients(method, steps, target)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-14 * len(steps) * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("method", LINEAR)
@given(run=runs(min_size=4), seed=st.integers(0, 1000))
def test_a_straight_line_is_continued_to_the_last_digits(method, run, seed):
    steps, _, target = run
    slope, start = np.random.default_rng(seed).normal(size=(2, 6))
    line = start + np.outer(steps - steps[0], slope)
    for when in (target, (steps[0] + steps[-1]) / 2, steps[0] - 5):
        found = coefficients(method, steps, when, gram_of(line), gram_of(line))
        expected = start + slope * (when - steps[0])
        # Relative to what is added up, which for a far target is more than comes out.
        scale = np.abs(found) @ np.abs(line) + np.abs(expected)
        assert (np.abs(found @ line - expected) <= 1e-12 * scale).all()


@pytest.mark.parametrize("method", SIMPLE)
@given(steps=steps_of_a_run(), target=targets, slope=st.integers(-100, 100), intercept=st.integers(-100, 100))
def test_a_straight_line_is_continued_at_any_steps(method, steps, target, slope, intercept):
    found = coefficients(method, steps, target)
    values = slope * np.array(steps, np.float64) + intercept
    scale = np.abs(found) @ np.abs(values) + abs(slope * target) + 1
    # A small coefficient beside one of about 1 is right to a unit in the last place of 1.
    rounding = 1e-15 * np.abs(values).max()
    assert found @ values == pytest.approx(slope * target + intercept, abs=1e-13 * scale + rounding)


@pytest.mark.parametrize("method", [m for m in SPECS if m not in [*LINEAR, "kriging"]])
def test_what_is_not_called_linear_does_not_continue_a_line(method):
    steps = np.arange(6.0)
    line = np.outer(steps, [1.0, 2.0])
    found = coefficients(method, steps, 9.0, gram_of(line)) @ line
    assert np.abs(found - [9.0, 18.0]).min() > 1


@pytest.mark.parametrize("method", SPECS)
@given(run=runs(min_size=5), shift=st.integers(-100, 100), scale=st.sampled_from([0.001, 0.5, 3.0, 1000.0]))
def test_where_steps_begin_and_their_unit_do_not_matter(method, run, shift, scale):
    steps, weights, target = run
    gram = gram_of(weights)
    found = coefficients(method, steps, target, gram, gram)
    moved = coefficients(method, (steps + shift) * scale, (target + shift) * scale, gram, gram)
    np.testing.assert_allclose(moved, found, rtol=1e-6, atol=1e-8 * np.abs(found).max())


@pytest.mark.parametrize("method", SIMPLE)
@given(steps=steps_of_a_run(), target=targets)
def test_the_unit_of_the_step_does_not_matter_to_lines_at_any_steps(method, steps, target):
    in_thousands = coefficients(method, [(s + 5) / 1000 for s in steps], (target + 5) / 1000)
    found = coefficients(method, steps, target)
    np.testing.assert_allclose(in_thousands, found, rtol=1e-6, atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize("method", BY_GRAM)
@given(run=runs(min_size=5), scale=st.sampled_from([2.0**-60, 0.25, 3.0, 1e20]))
def test_the_unit_of_the_weights_does_not_matter(method, run, scale):
    steps, weights, target = run
    gram = gram_of(weights)
    found = coefficients(method, steps, target, gram, gram)
    scaled = coefficients(method, steps, target, gram * scale, gram * scale)
    np.testing.assert_allclose(scaled, found, rtol=1e-5, atol=1e-8 * np.abs(found).max())


@pytest.mark.parametrize("method", SPECS)
@given(run=runs(min_size=5), seed=st.integers(0, 1000))
def test_many_tensors_at_once_are_each_by_itself_in_any_order(method, run, seed):
    steps, weights, target = run
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *weights.shape))
    grams = np.stack([gram_of(weights), gram_of(noise[0]), gram_of(0 * weights), gram_of(noise[1] + weights)])
    pooled = grams.sum(axis=0)
    spec = parse_method(method)
    together = spec.coefficients(steps, target, grams, pooled)
    assert together.shape == ((4, steps.size) if spec.needs_gram else (steps.size,))
    order = rng.permutation(4)
    shuffled = spec.coefficients(steps, target, grams[order], pooled)
    for row, (place, gram) in enumerate(zip(order, grams[order], strict=True)):
        alone = spec.coefficients(steps, target, gram, pooled)
        for many in (together[place], shuffled[row]) if spec.needs_gram else (together, shuffled):
            np.testing.assert_allclose(many, alone, rtol=1e-6, atol=1e-9 * np.abs(alone).max())


@pytest.mark.parametrize("method", BY_GRAM)
def test_a_tensor_that_never_moved_keeps_the_last_checkpoint(method):
    found = coefficients(method, np.arange(6.0), 9.0, np.zeros((6, 6)), np.diag(np.arange(6.0)))
    assert found.tolist() == [0.0] * 5 + [1.0]


@pytest.mark.parametrize("method", BY_GRAM)
def test_a_tensor_that_moved_once_is_predicted_too(method):
    weights = np.zeros((6, 3))
    weights[3:] = [1.0, -2.0, 0.5]
    gram = gram_of(weights)
    found = coefficients(method, np.arange(6.0), 9.0, gram, gram)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    assert np.abs(found @ weights).max() < 10


@pytest.mark.parametrize("method", SPECS)
def test_too_few_checkpoints_are_refused_with_the_number_that_is_needed(method):
    spec = parse_method(method)
    enough = np.arange(float(spec.min_steps))
    gram = gram_of(np.random.default_rng(0).normal(size=(enough.size, 5)))
    assert spec.coefficients(enough, 9.0, gram).sum() == pytest.approx(1)
    few = enough[:-1]
    selected = "only one was" if few.size == 1 else f"only {few.size} were"
    needed = "1 checkpoint" if spec.min_steps == 1 else f"{spec.min_steps} checkpoints"
    message = f"method {spec.name} needs at least {needed}, and {selected} selected"
    with pytest.raises(InputError, match=re.escape(message)):
        spec.coefficients(few, 9.0, gram[:-1, :-1])
    # The function says so itself when it is called without the specification.
    with pytest.raises(InputError, match=f"needs at least .*, and {selected} selected"):
        spec.entry.function(few, 9.0, gram[:-1, :-1], None, **spec.parameters)


@pytest.mark.parametrize("method", SPECS)
def test_what_is_given_is_not_changed(method):
    steps = np.array([0.0, 50.0, 200.0, 210.0, 220.0])
    gram = gram_of(np.random.default_rng(1).normal(size=(5, 3)))
    before = gram.copy()
    coefficients(method, steps, 300.0, gram, gram)
    parse_method(method).coefficients(steps, 300.0, gram, gram)
    assert steps.tolist() == [0.0, 50.0, 200.0, 210.0, 220.0]
    assert gram.tobytes() == before.tobytes()


@pytest.mark.parametrize("method", BY_GRAM)
def test_what_needs_the_gram_matrix_says_so_without(method):
    name = parse_method(method).name
    with pytest.raises(
        InputError, match=f"method {name} needs the Gram matrix of each tensor, and none was given"
    ):
        coefficients(method, np.arange(6.0), 9.0)


@pytest.mark.parametrize("method", BY_STEPS)
def test_what_does_not_need_it_does_not_look_at_it(method):
    steps = np.arange(6.0)
    without = coefficients(method, steps, 9.0)
    assert without.tobytes() == coefficients(method, steps, 9.0, np.full((6, 6), np.nan)).tobytes()


@pytest.mark.parametrize(
    "method", ["anchored", "wls-anchored", "dmd", "damped", "kriging", "persistence", "lawa:k=1"]
)
@given(run=runs(min_size=5))
def test_these_meet_the_last_checkpoint(method, run):
    steps, weights, _ = run
    found = coefficients(method, steps, steps[-1], gram_of(weights))
    assert found.tolist() == [0.0] * (steps.size - 1) + [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_registered_under_its_name_and_says_what_it_does(name):
    entry = get_method(name)
    assert entry.name == name
    assert entry.description
    assert "\n" not in entry.description
    assert all(parameter.description for parameter in entry.parameters)
    documented = inspect.getdoc(entry.function)
    assert ">>>" in documented
    accepted = inspect.signature(entry.function).parameters
    assert [p.name for p in entry.parameters] == list(accepted)[4:]
    for parameter in entry.parameters:
        if not isinstance(parameter.default, str):
            assert parameter.default == accepted[parameter.name].default
            assert parameter.low <= parameter.default <= parameter.high
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.name = "other"


def test_two_point_alone_keeps_the_norms_as_the_paper_does():
    assert {name: entry.keep for name, entry in METHODS.items() if entry.keep} == {"two-point": ("norm",)}
