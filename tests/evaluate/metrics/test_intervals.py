import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.coverage import cover_majority, cover_paired, cover_pass_at_k
from ckptlin.errors import InputError
from ckptlin.evaluate.metrics.intervals import interval_over_problems, interval_over_samples, score_interval

values = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(st.integers(0, 80), st.integers(1, 80))
def test_the_score_interval_of_a_count_is_wilsons(c, n):
    c = min(c, n)
    found = score_interval(c / n, n, quantile=stats.norm.ppf(0.975), level=0.95)
    expected = stats.binomtest(c, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(values, st.sampled_from([1, 4, 64]))
def test_it_holds_the_mean_has_a_width_and_stays_in_range(given_values, n):
    found = interval_over_problems(given_values, samples_per_problem=n)
    assert 0.0 <= found.low <= np.mean(given_values) + 1e-12
    assert np.mean(given_values) - 1e-12 <= found.high <= 1.0
    assert found.width > 0.0


@given(values)
def test_it_mirrors_when_success_and_failure_change_places(given_values):
    given_values = np.round(given_values, 6)
    found = interval_over_problems(given_values, samples_per_problem=4)
    mirrored = interval_over_problems(1.0 - given_values, samples_per_problem=4)
    assert (found.low, found.high) == pytest.approx((1.0 - mirrored.high, 1.0 - mirrored.low), abs=1e-6)


def test_many_problems_give_students_interval():
    drawn = np.random.default_rng(0).beta(2, 3, 20_000)
    found = interval_over_problems(drawn, samples_per_problem=64)
    expected = stats.t.interval(0.95, len(drawn) - 1, drawn.mean(), stats.sem(drawn))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_without_any_variance_the_groups_of_samples_count(mean):
    found = interval_over_samples(mean, 0.0, num_problems=30, num_groups=480)
    assert found.width == pytest.approx(3.8415 / (480 + 3.8415), rel=1e-4)
    assert mean in found


def test_the_variance_of_a_mean_cannot_exceed_that_of_single_trials():
    wide = interval_over_samples(0.5, 1.0, num_problems=30, num_groups=30)
    wilson = stats.binomtest(15, 30).proportion_ci(0.95, method="wilson")
    assert (wide.low, wide.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        interval_over_problems([0.5], samples_per_problem=1, level=level)


@pytest.mark.parametrize("given_values", [[], [[0.5]], [1.5], [math.nan]])
def test_values_that_are_no_shares_are_refused(given_values):
    with pytest.raises(InputError, match="an interval"):
        interval_over_problems(given_values, samples_per_problem=1)


# 600 repetitions: a standard error of 0.9 points at 95%, and the seed is fixed.
@pytest.mark.parametrize(("accuracy", "population"), [(0.5, "a+b=0.3"), (0.1, "a+b=1")])
def test_both_intervals_cover_as_they_say_and_the_percentile_bootstrap_does_not(accuracy, population):
    cells = list(cover_pass_at_k(population, accuracy, 30, 16, repeats=600, generator=np.random.default_rng(1)))
    for cell in cells:
        assert 0.92 <= cell.coverage["ours"] <= 0.98, cell
    assert min(cell.coverage["percentile"] for cell in cells if cell.kind == "samples") < 0.7


def test_both_intervals_of_maj_at_k_cover():
    for cell in cover_majority("a+b=1", 0.5, 30, 8, repeats=300, generator=np.random.default_rng(2), pool=200):
        assert cell.coverage["ours"] >= 0.92, cell


def test_the_interval_of_a_difference_never_covers_too_seldom():
    for cell in cover_paired("a+b=1", 0.3, 30, 16, repeats=600, generator=np.random.default_rng(3)):
        assert cell.coverage["ours"] >= 0.92, cell
