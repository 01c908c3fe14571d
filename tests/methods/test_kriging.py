"""Kriging, against the same worked out on the weights themselves, with integrals and densities by scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal

from ckptlin.methods import kriging as module
from ckptlin.methods import parse_method
from tests.methods.runs import coefficients, gram_of, runs


def variance(distance: float, tau: float) -> float:
    """Of the way that a velocity with correlation exp(−|u − v|/τ) leads, by quadrature; 1 at distance 1."""
    if tau == 0:
        return distance

    def way(end: float) -> float:
        # Twice the triangle v < u, where the correlation is smooth.
        return 2 * dblquad(lambda v, u: np.exp(-(u - v) / tau), 0, end, 0, lambda u: u, epsabs=1e-13)[0]

    return way(distance) / way(1.0)


def directly(steps, weights, target, grid, evidence):
    """The prediction: a Gaussian process in the weights, its covariance that of w − w_1."""
    places = np.append(
        (steps - steps[0]) / (steps[-1] - steps[0]), (target - steps[0]) / (steps[-1] - steps[0])
    )
    interval = np.median(np.diff(places[:-1]))
    moves = weights - weights[0]
    found = []
    for alpha, beta, short, long in grid:

        def gamma(d, alpha=alpha, beta=beta, short=short, long=long):
            rest = (1 - beta) * variance(d, short * interval) + beta * (variance(d, long) if beta else 0)
            return alpha * d * d + (1 - alpha) * rest

        from_first = [gamma(abs(x)) for x in places[1:]]
        covariance = np.array(
            [
                [(from_first[i] + from_first[j] - gamma(abs(x - y))) / 2 for j, y in enumerate(places[1:])]
                for i, x in enumerate(places[1:])
            ]
        )
        known, ahead = covariance[:-1, :-1], covariance[-1, :-1]
        # The scale that is likeliest for all parameters together, then the density of each of them.
        scale = np.trace(np.linalg.solve(known, moves[1:] @ moves[1:].T)) / moves[1:].size
        density = multivariate_normal(cov=scale * known, allow_singular=False)
        found.append((density.logpdf(moves[1:].T).mean(), ahead @ np.linalg.solve(known, moves[1:])))
    logs = np.array([log for log, _ in found])
    share = np.exp(evidence * (logs - logs.max()))
    return weights[0] + share @ np.array([move for _, move in found]) / share.sum()


@pytest.fixture
def few_candidates(monkeypatch):
    monkeypatch.setattr(module, "_DRIFT", (0.1, 0.7))
    monkeypatch.setattr(module, "_LONG", (0.5,))
    monkeypatch.setattr(module, "_LONG_SHARE", (0.3, 0.8))
    yield module._inverses.cache_clear()
    module._inverses.cache_clear()


@pytest.mark.usefixtures("few_candidates")
@pytest.mark.parametrize("target", [9.0, 21.0, 5.5, 2.0])
@pytest.mark.parametrize("evidence", [0.0, 3.0, 30.0])
def test_it_is_the_conditional_mean_of_a_gaussian_process_weighed_by_scipys_densities(target, evidence):
    steps = np.array([0.0, 2.0, 3.0, 5.0, 7.0])
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(5, 6)).cumsum(axis=0) + np.outer(steps, rng.normal(size=6))
    found = coefficients(f"kriging:evidence={evidence}", steps, target, gram_of(weights)) @ weights
    rest = [(0.0, 0.0, 0.5), (0.0, 0.7, 0.5)]
    rest += [(share, short, 0.5) for short in (0.0, 0.7) for share in (0.3, 0.8)]
    grid = [(alpha, *other) for alpha, other in itertools.product((0.1, 0.7), rest)]
    expected = directly(steps, weights, target, grid, evidence)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(weights).max())


@given(run=runs(min_size=3), base=st.integers(0, 2))
def test_the_checkpoint_that_the_gram_matrix_is_based_on_does_not_matter(run, base):
    steps, weights, target = run
    moves = weights - weights[base]
    found = coefficients("kriging", steps, target, moves @ moves.T)
    expected = coefficients("kriging", steps, target, gram_of(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


@given(run=runs(min_size=3))
def test_an_observed_step_is_that_checkpoint(run):
    steps, weights, _ = run
    for row, step in enumerate(steps):
        found = coefficients("kriging", steps, step, gram_of(weights))
        np.testing.assert_allclose(found, np.eye(steps.size)[row], atol=1e-7)


@given(run=runs(min_size=2))
def test_without_evidence_the_weights_do_not_count(run):
    steps, weights, target = run
    other = np.random.default_rng(0).normal(size=weights.shape)
    found = [coefficients("kriging:evidence=0", steps, target, gram_of(w)) for w in (weights, other)]
    np.testing.assert_allclose(*found, atol=1e-9)


@pytest.mark.parametrize("num_steps", [12, 100])
def test_a_drift_is_followed_and_a_walk_is_not(num_steps):
    rng = np.random.default_rng(0)
    steps = np.arange(float(num_steps))
    drift = np.outer(steps, rng.normal(size=500))
    walk = rng.normal(size=(num_steps, 500)).cumsum(axis=0)
    target = 2 * steps[-1]

    def share(weights):
        """How much of the line through first and last is kept."""
        move = coefficients("kriging", steps, target, gram_of(weights)) @ weights - weights[-1]
        line = coefficients("two-point", steps, target) @ weights - weights[-1]
        return move @ line / (line @ line)

    assert share(drift) == pytest.approx(1, abs=0.02)
    assert abs(share(walk)) < 0.15
    assert 0.3 < share(drift / np.sqrt(num_steps) + walk) < 0.7


def test_of_a_mixture_it_predicts_better_than_the_line_and_than_standing_still():
    rng = np.random.default_rng(1)
    steps = np.arange(21.0)
    errors = {"kriging": 0.0, "two-point": 0.0, "anchored": 0.0, "persistence": 0.0}
    for _ in range(10):
        velocity = np.zeros((21, 300))
        velocity[0] = rng.normal(size=300)
        for row in range(1, 21):
            velocity[row] = 0.8 * velocity[row - 1] + 0.6 * rng.normal(size=300)
        weights = (velocity + rng.normal(size=(21, 300)) + 0.7 * rng.normal(size=300)).cumsum(axis=0)
        gram = gram_of(weights[:11])
        for method in errors:
            found = coefficients(method, steps[:11], 20.0, gram) @ weights[:11]
            errors[method] += float(np.square(found - weights[20]).sum())
    assert errors["kriging"] < 0.9 * min(error for name, error in errors.items() if name != "kriging")


def test_of_many_checkpoints_sixty_four_enter():
    rng = np.random.default_rng(0)
    steps = np.arange(200.0)
    weights = rng.normal(size=(200, 50)).cumsum(axis=0) + np.outer(steps, rng.normal(size=50))
    gram = np.stack([gram_of(weights), gram_of(weights[::-1])])
    found = coefficients("kriging", steps, 300.0, gram)
    assert found.shape == (2, 200)
    used = np.flatnonzero(found.any(axis=0))
    assert used.size == 64
    assert (used[0], used[-1]) == (0, 199)
    alone = coefficients("kriging", steps[used], 300.0, gram[0][np.ix_(used, used)])
    assert found[0, used].tolist() == pytest.approx(alone.tolist())


@settings(max_examples=20)
@given(gaps=st.lists(st.integers(1, 10**4), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_very_uneven_steps_give_finite_coefficients_that_sum_to_one(gaps, seed):
    steps = np.cumsum([0, *gaps]).astype(np.float64)
    weights = np.random.default_rng(seed).normal(size=(steps.size, 20)).cumsum(axis=0)
    found = coefficients("kriging", steps, 2 * steps[-1], gram_of(weights))
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert np.abs(found).max() < 10 * steps[-1] / min(gaps)


def test_its_parameter_is_read_and_bounded():
    assert str(parse_method("kriging:evidence=100")) == "kriging:evidence=100"
    with pytest.raises(Exception, match="evidence=-1 of method kriging must be"):
        parse_method("kriging:evidence=-1")
