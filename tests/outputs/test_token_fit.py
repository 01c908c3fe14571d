"""The fit of log-probabilities against scipy, token by token."""

import numpy as np
import pytest
from scipy.stats import linregress

from ckptlin.errors import InputError
from ckptlin.outputs import token_store
from ckptlin.outputs.token_classes import classes_of, distinct_tokens
from ckptlin.outputs.token_fit import fit_tokens
from tests.outputs.token_steps import make_store

STEPS = (0, 10, 25, 30, 50, 60)
LENGTHS = (40, 25, 60, 75)


def trajectories(num_tokens, seed=0):
    """Lines, walks and standstill, over eight orders of magnitude."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-6, 0.5, num_tokens)
    line = np.outer(STEPS, rng.standard_normal(num_tokens)) / 60
    walk = np.cumsum(rng.standard_normal((len(STEPS), num_tokens)), axis=0)
    values = -3 + scale * (line + walk * rng.uniform(0, 0.5, num_tokens))
    values[:, rng.random(num_tokens) < 0.1] = -2.5
    return values.astype(np.float32)


@pytest.fixture
def values():
    return trajectories(sum(LENGTHS))


@pytest.fixture
def store(values, tmp_path):
    entropy = np.random.default_rng(2).random(sum(LENGTHS)).astype(np.float32)
    return make_store(tmp_path / "s", values, STEPS, lengths=LENGTHS, entropy=entropy)


def of_scipy(values, steps=STEPS):
    """R², slope and intercept of each token; NaN where nothing moves."""
    moved = (values != values[0]).any(axis=0)
    found = np.full((3, values.shape[1]), np.nan)
    for i in np.flatnonzero(moved):
        line = linregress(steps, values[:, i].astype(np.float64))
        found[:, i] = line.rvalue**2, line.slope, line.intercept
    return found


def assert_figures(figures, r2):
    assert figures.count == r2.size
    if r2.size:
        assert figures.mean == pytest.approx(r2.mean(), abs=1e-5)
        # Quantiles are exact to a bin.
        for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            lo, hi = np.quantile(r2, q, method="lower"), np.quantile(r2, q, method="higher")
            assert lo - 0.002 <= getattr(figures, name) <= hi + 0.002
        for name, limit in (("above_7", 0.7), ("above_9", 0.9)):
            near = (np.abs(r2 - limit) < 1e-4).mean()
            assert getattr(figures, name) == pytest.approx((r2 > limit).mean(), abs=near + 1e-12)


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_both_populations_are_those_of_scipy(chunk, values, tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "_CHUNK", chunk)
    fit = fit_tokens(make_store(tmp_path / "s", values, STEPS, lengths=LENGTHS))
    r2 = of_scipy(values)[0]
    moved = ~np.isnan(r2)
    far = moved & (np.abs(values[-1] - values[0]) > 0.2)
    assert 0 < far.sum() < moved.sum() < r2.size
    whole = fit.groups[0]
    assert whole.num_tokens == r2.size
    assert_figures(whole.moved, r2[moved])
    assert_figures(whole.far, r2[far])
    assert fit.histogram.sum(axis=1).tolist() == [moved.sum(), far.sum()]


def test_each_class_holds_its_tokens(store, values):
    fit = fit_tokens(store)
    r2 = of_scipy(values)[0]
    for classes in classes_of(store):
        groups = [group for group in fit.groups if group.kind == classes.kind]
        assert [group.name for group in groups] == list(classes.names)
        assert sum(group.num_tokens for group in groups) == r2.size
        for code, group in enumerate(groups):
            inside = classes.codes == code
            assert group.num_tokens == inside.sum() > 0
            assert_figures(group.moved, r2[inside & ~np.isnan(r2)])
    entropy = store.read("entropy")
    by_entropy = next(classes for classes in classes_of(store) if classes.kind == "entropy")
    assert [entropy[by_entropy.codes == code].max() for code in range(3)] == pytest.approx(
        [np.quantile(entropy, q) for q in (0.25, 0.5, 0.75)], abs=0.02
    )
    by_frequency = next(classes for classes in classes_of(store) if classes.kind == "frequency")
    counts = np.bincount(store.read("token_ids"))[store.read("token_ids")]
    for code in range(2):
        assert counts[by_frequency.codes == code].max() <= counts[by_frequency.codes == code + 1].min()


def test_the_tokens_that_move_most_are_listed_with_their_lines(store, values):
    fit = fit_tokens(store, num_moving=4)
    r2, slope, intercept = of_scipy(values)
    change = values[-1].astype(np.float64) - values[0]
    hashes = distinct_tokens(store)
    responses, positions = store.read("response"), store.read("position")
    for listed, order in ((fit.up, np.argsort(-change)), (fit.down, np.argsort(change))):
        places, seen = [], set()
        for place in order:
            if hashes[place] not in seen:
                seen.add(hashes[place])
                places.append(place)
        for token, place in zip(listed, places[:4], strict=True):
            assert token.position == positions[place]
            assert (token.problem_id, token.sample) == tuple(store.read_json("names")[responses[place]])
            np.testing.assert_array_equal(np.float32(token.values), values[:, place])
            assert token.r2 == pytest.approx(r2[place], abs=1e-5)
            assert token.slope == pytest.approx(slope[place], rel=1e-4)
            assert token.intercept == pytest.approx(intercept[place], rel=1e-4)
            assert token.text == str(store.read("token_ids")[place])


def test_tokens_behind_the_same_text_are_found(store):
    """Against all texts themselves."""
    tokens, lengths = store.read("token_ids"), store.read("response_length")
    texts = []
    for response, (start, length) in enumerate(zip(np.cumsum(lengths) - lengths, lengths, strict=True)):
        prompt = store.read("prompt")[response]
        texts += [(prompt, *tokens[start : start + n + 1].tolist()) for n in range(length)]
    hashes = distinct_tokens(store)
    assert len(set(texts)) == len(set(hashes.tolist())) < len(texts)
    assert fit_tokens(store).num_distinct == len(set(texts))


def test_random_walks_are_no_more_linear_than_their_null(tmp_path):
    rng = np.random.default_rng(5)
    steps = tuple(range(0, 140, 10))
    size = 8000
    scale = 10.0 ** rng.uniform(-3, 0, size)
    walks = -5 + np.cumsum(rng.standard_normal((len(steps), size)), axis=0) * scale
    fit = fit_tokens(make_store(tmp_path / "s", walks.astype(np.float32), steps, lengths=(size // 2,) * 2))
    whole = fit.groups[0]
    for found, null in ((whole.moved, whole.null_moved), (whole.far, whole.null_far)):
        error = np.sqrt(found.above_7 * (1 - found.above_7) / found.count)
        assert found.above_7 == pytest.approx(null.above_7, abs=5 * error + 0.01)
        assert found.median == pytest.approx(null.median, abs=0.05)
    assert whole.far.count == pytest.approx(whole.null_far.count, rel=0.1)
    assert whole.far.above_7 > whole.moved.above_7 + 0.08, "the filter alone makes walks look straight"


def test_a_window_of_steps(store, values):
    fit = fit_tokens(store, steps="10:50")
    assert fit.steps == (10, 25, 30, 50)
    r2 = of_scipy(values[1:5], STEPS[1:5])[0]
    assert_figures(fit.groups[0].moved, r2[~np.isnan(r2)])
    with pytest.raises(InputError, match="at least 2 steps, and --steps 10 selects 1"):
        fit_tokens(store, steps="10")


def test_one_step_is_no_fit(values, tmp_path):
    store = make_store(tmp_path / "one", values[:1], STEPS[:1], lengths=LENGTHS)
    with pytest.raises(InputError, match="at least 2 steps"):
        fit_tokens(store)


def test_tokens_that_never_move_have_no_r2(tmp_path):
    values = np.full((3, 10), -1.0, np.float32)
    fit = fit_tokens(make_store(tmp_path / "s", values, (0, 1, 2), lengths=(5, 5)))
    assert fit.groups[0].moved.count == 0
    assert fit.groups[0].moved.median is None
    assert fit.up == fit.down == ()
