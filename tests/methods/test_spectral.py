"""Methods that decompose the Gram matrix, against the same done directly to the weights."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.methods.runs import coefficients, gram_of, runs


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(run=runs(min_size=5))
def test_relex_is_the_line_of_the_first_singular_components(rank, run):
    steps, weights, target = run
    u, sigma, vt = np.linalg.svd(weights - weights[0], full_matrices=False)
    assume(sigma[rank - 1] > 1.01 * sigma[rank])  # else which components are the first is arbitrary
    coordinates = u[:, :rank] * sigma[:rank]
    slope, intercept = np.polyfit(steps - steps.mean(), coordinates, 1)
    expected = weights[0] + (slope * (target - steps.mean()) + intercept) @ vt[:rank]
    found = coefficients(f"relex:rank={rank}", steps, target, gram_of(weights))
    np.testing.assert_allclose(
        found @ weights, expected, atol=1e-8 * np.abs(found).sum() * np.abs(weights).max()
    )


@given(run=runs(min_size=4))
def test_relex_of_full_rank_is_ols(run):
    steps, weights, target = run
    found = coefficients(f"relex:rank={steps.size - 1}", steps, target, gram_of(weights))
    expected = coefficients("ols", steps, target)
    np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())


@given(run=runs(min_size=5))
def test_relex_asks_for_no_more_components_than_there_are(run):
    steps, weights, target = run
    flat = np.outer(weights[:, 0], [1.0, -2.0, 0.5])  # rank 1
    one, three = (coefficients(f"relex:rank={rank}", steps, target, gram_of(flat)) @ flat for rank in (1, 3))
    np.testing.assert_allclose(three, one, atol=1e-9 * np.abs(one).max())


def directly(weights, rank, num_ahead):
    """DMD of the updates with the matrices themselves, and the checkpoints that they lead to."""
    updates = np.diff(weights, axis=0).T
    x, y = updates[:, :-1], updates[:, 1:]
    v, sigma, wt = np.linalg.svd(x, full_matrices=False)
    v, sigma, w = v[:, :rank], sigma[:rank], wt[:rank].T
    operator = v.T @ y @ w / sigma
    radius = np.abs(np.linalg.eigvals(operator)).max()
    operator /= max(1.0, radius)
    state = v.T @ updates[:, -1]
    found = [weights[-1]]
    for _ in range(num_ahead):
        found.append(found[-1] + y @ w / sigma @ state)
        state = operator @ state
    return np.array(found), sigma


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(run=runs(min_size=6, max_size=10), num_ahead=st.integers(1, 12), part=st.sampled_from([0.0, 0.25, 0.5]))
def test_dmd_is_that_of_the_matrices_themselves(rank, run, num_ahead, part):
    _, weights, _ = run
    steps = 100.0 + 50.0 * np.arange(len(weights))
    path, sigma = directly(weights, rank, num_ahead + 1)
    assume(rank == len(weights) - 2 or sigma[-1] > 1e-3)
    u = np.linalg.svd(np.diff(weights, axis=0)[:-1], compute_uv=False)
    assume(u.size == rank or u[rank - 1] > 1.01 * u[rank])
    expected = path[num_ahead] + part * (path[num_ahead + 1] - path[num_ahead])
    target = steps[-1] + 50.0 * (num_ahead + part)
    found = coefficients(f"dmd:rank={rank}", steps, target, gram_of(weights))
    scale = np.abs(found).sum() * np.abs(weights).max()
    np.testing.assert_allclose(found @ weights, expected, atol=1e-6 * scale)


def settling(steps, rates, seed):
    """A trajectory that settles at ``rates`` per step, and its limit."""
    start, *parts = np.random.default_rng(seed).normal(size=(1 + len(rates), 8))
    return start + sum(np.outer(r ** (steps / 50), p) for r, p in zip(rates, parts, strict=True)), start


@given(seed=st.integers(0, 1000), rates=st.sampled_from([[0.5], [0.9], [0.8, 0.3], [0.9, -0.5]]))
def test_what_settles_is_followed_by_dmd_and_its_limit_found_by_rre(seed, rates):
    steps = 50.0 * np.arange(8)
    weights, limit = settling(steps, rates, seed)
    gram = gram_of(weights)
    found = coefficients(f"dmd:rank={len(rates)}", steps, 600.0, gram) @ weights
    np.testing.assert_allclose(found, settling(np.array([600.0]), rates, seed)[0][0], atol=1e-5)
    found = coefficients("rre:ridge=1e-14", steps, 600.0, gram) @ weights
    np.testing.assert_allclose(found, limit, atol=1e-3)


def test_dmd_does_not_let_updates_grow_without_end():
    steps = np.arange(8.0)
    weights = np.outer(2.0**steps, [1.0, -1.0])
    found = coefficients("dmd", steps, 1000.0, gram_of(weights)) @ weights
    last = weights[-1] - weights[-2]
    # The first update ahead is twice the last, and goes on at that.
    np.testing.assert_allclose(found, weights[-1] + 993 * 2 * last, rtol=1e-9)


@given(run=runs(min_size=4))
def test_between_checkpoints_dmd_is_the_straight_line(run):
    steps, weights, _ = run
    gram = gram_of(weights)
    for when in (*steps, steps[0] + 0.3, (steps[-2] + steps[-1]) / 2):
        found = coefficients("dmd", steps, when, gram) @ weights
        expected = [np.interp(when, steps, column) for column in weights.T]
        np.testing.assert_allclose(found, expected, atol=1e-9)


@given(run=runs(min_size=4), share=st.floats(0.01, 0.99))
def test_uneven_steps_are_even_ones_interpolated(run, share):
    """A trajectory of straight pieces is the same seen at any steps that hold its corners."""
    _, weights, _ = run
    even = np.arange(len(weights), dtype=np.float64)
    moved = even.copy()
    moved[1:-1] += 0.4 * (share - 0.5)
    bent = np.stack([np.interp(moved, even, column) for column in weights.T], axis=1)
    seen = np.stack([np.interp(even, moved, column) for column in bent.T], axis=1)
    target = even[-1] + 2.5
    found = coefficients("dmd", moved, target, gram_of(bent)) @ bent
    expected = coefficients("dmd", even, target, gram_of(seen)) @ seen
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(weights).max())


@given(run=runs(min_size=4), ridge=st.sampled_from([1e-6, 1e-2, 1.0]))
def test_rre_moves_least(run, ridge):
    steps, weights, target = run
    found = coefficients(f"rre:ridge={ridge}", steps, target, gram_of(weights))
    assert found[-1] == 0
    updates = np.diff(weights, axis=0)
    size = (updates**2).sum()
    # The ridge is a row for each checkpoint below the updates; Σγ = 1 is put in by substitution.
    stacked = np.concatenate([updates.T / np.sqrt(size), np.sqrt(ridge) * np.eye(len(updates))])
    free = np.linalg.lstsq(stacked[:, 1:] - stacked[:, :1], -stacked[:, 0], rcond=None)[0]
    expected = np.concatenate([[1 - free.sum()], free])
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-5, atol=1e-6)


def test_rre_of_a_line_is_its_mean():
    steps = np.arange(6.0)
    line = np.outer(steps, [1.0, 2.0])
    np.testing.assert_allclose(coefficients("rre", steps, 9.0, gram_of(line)), [0.2] * 5 + [0.0], atol=1e-8)
