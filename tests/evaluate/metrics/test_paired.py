import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics import compare, relative_gains
from ckptlin.evaluate.metrics.paired import mcnemar, sign_flip_p_value

quarters = st.integers(-4, 4).map(lambda i: i / 4)


@given(st.lists(quarters, min_size=2, max_size=9))
def test_the_enumerated_test_is_scipys(differences):
    found, is_exact = sign_flip_p_value(differences)
    expected = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert is_exact
    assert found == pytest.approx(expected.pvalue, abs=1e-12)


def test_drawn_signs_agree_with_all_of_them():
    differences = np.random.default_rng(0).normal(0.2, 0.5, 17)
    found, is_exact = sign_flip_p_value(differences, seed=1)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert not is_exact
    assert found == pytest.approx(expected.pvalue, abs=4 * (expected.pvalue / 9999) ** 0.5)
    assert sign_flip_p_value(differences, seed=1)[0] == found


def test_a_drawn_p_value_is_never_0():
    assert sign_flip_p_value([1.0] * 40)[0] == 1e-4


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_scipys_binomial_test(better, worse):
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar([1] * better + [-1] * worse + [0] * 3) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_needs_one_binary_outcome_of_each_problem():
    single = compare([[0], [1], [0]], [[1], [1], [0]])
    assert single.mcnemar_p_value == 1.0
    assert compare([[0, 1], [1, 1]], [[1, 1], [1, 1]]).mcnemar_p_value is None
    assert compare([[0], [0.5]], [[1], [1]]).mcnemar_p_value is None


def test_two_points_on_thirty_problems_are_within_the_noise():
    generator = np.random.default_rng(0)
    first = [generator.integers(0, 2, 16) for _ in range(30)]
    second = [generator.integers(0, 2, 16) for _ in range(30)]
    second[0][:] = 1
    found = compare(first, second)
    assert not found.is_told
    assert 0.0 in found.interval
    assert "within the noise on 30 problems" in found.verdict()
    assert found.to_dict()["verdict"] == found.verdict()


def test_a_gain_on_every_problem_is_told():
    found = compare([[0, 0, 1, 0]] * 30, [[1, 0, 1, 0]] * 30)
    assert found.is_told
    assert found.verdict(first="base", second="RL").startswith("RL solves more than base: +25.0 points [")
    assert "fewer" in compare([[1, 0, 1, 0]] * 30, [[0, 0, 1, 0]] * 30).verdict()


def test_models_that_solve_the_same_have_an_interval_with_a_width_and_a_warning():
    found = compare([[0, 1]] * 30, [[1, 0]] * 30)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.interval.low < 0.0 < found.interval.high
    assert "no problem differs" in found.warnings[0]
    assert "solves as many" in found.verdict()


def test_one_problem_says_nothing():
    found = compare([[0]], [[1]])
    assert (found.interval.low, found.interval.high) == (-1.0, 1.0)


def test_turning_the_comparison_round_turns_its_signs():
    generator = np.random.default_rng(3)
    first, second = ([generator.random(5) for _ in range(12)] for _ in range(2))
    there, back = compare(first, second), compare(second, first)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))


def test_gains_differ_by_what_is_averaged_first():
    found = relative_gains([0.1, 0.8, 0.0], [0.2, 0.6, 0.1])
    assert found.gain_of_means == pytest.approx(0.9 / 0.9 - 1)
    assert found.mean_of_gains == pytest.approx((1.0 - 0.25) / 2)
    assert found.num_left_out == 1


def test_gains_over_nothing_are_none():
    found = relative_gains([0.0, 0.0], [0.5, 0.0])
    assert (found.gain_of_means, found.mean_of_gains, found.num_left_out) == (None, None, 2)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([[1]], [[1], [0]], "the same problems, not 1 and 2"),
        ([], [], "no problem"),
        ([[2]], [[1]], "not from 0 to 1"),
        ([[]], [[1]], "at least one"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(first, second, message):
    with pytest.raises(InputError, match=message):
        compare(first, second)
