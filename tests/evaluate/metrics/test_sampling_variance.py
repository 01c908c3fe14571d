import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from ckptlin.evaluate.metrics.majority import ballot, majority_at_k
from ckptlin.evaluate.metrics.pass_at_k import pass_at_k
from ckptlin.evaluate.metrics.sampling_variance import (
    Beta,
    fit_beta,
    majority_variance,
    mean_variance,
    pass_at_k_variance,
)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_variance_is_its_integral_over_the_posterior(k):
    correct, n = np.array([0, 1, 3, 6, 6, 5]), 6
    beta = fit_beta(correct, np.full(6, n))

    def variance(p):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        values = pass_at_k(np.arange(n + 1), n, k)
        return chance @ values**2 - (chance @ values) ** 2

    expected = [
        quad(lambda p, c=c: variance(p) * stats.beta.pdf(p, beta.a + c, beta.b + n - c), 0, 1, limit=200)[0]
        for c in correct.tolist()
    ]
    assert pass_at_k_variance(correct, n, k) == pytest.approx(expected, rel=1e-6)


def test_the_fit_finds_the_population():
    generator = np.random.default_rng(0)
    found = fit_beta(generator.binomial(16, generator.beta(0.6, 1.4, 20_000)), np.full(20_000, 16))
    assert (found.a, found.b) == pytest.approx((0.6, 1.4), rel=0.05)


def test_problems_with_other_numbers_of_samples_have_their_own_variance():
    correct, sizes = [2, 8, 1], [4, 16, 4]
    together = pass_at_k_variance(correct, sizes, 2)
    assert together[1] < together[0]
    assert (together > 0).all()


def test_shares_have_the_variance_of_their_mean():
    scores = [np.random.default_rng(i).random(8) for i in range(400)]
    assert mean_variance(scores).mean() == pytest.approx(1 / 12 / 8, rel=0.1)


def test_a_single_share_of_each_problem_has_the_most_variance_there_can_be():
    assert mean_variance([np.array([0.25]), np.array([0.75])]).tolist() == [0.25, 0.25]


def test_the_jackknife_of_a_majority_leaves_out_each_sample_once():
    votes = np.array([0, 0, 0, 1, 1, 2, -1, 3])
    n, k = len(votes), 3
    without = [majority_at_k(np.delete(votes, i), np.delete(votes, i) == 0, k) for i in range(n)]
    expected = (n - 1) / n * ((without - np.mean(without)) ** 2).sum() + 0.5 * k / n**2
    found = majority_variance(
        [ballot(votes, votes == 0)], k, beta=Beta(1, 1), generator=np.random.default_rng(0)
    )
    assert found[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("votes", "low", "high"), [([0] * 9, 0, 0.02), ([0, 0, 1, 1], 0.1, 0.25)])
def test_elections_drawn_anew_vary_where_the_vote_was_close(votes, low, high):
    votes = np.array(votes)
    found = majority_variance(
        [ballot(votes, votes == 0)], len(votes), beta=Beta(1, 1), generator=np.random.default_rng(0)
    )
    assert low <= found[0] <= high
