"""Errors from Gram matrices, against those of weights that are really predicted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.methods import METHODS, parse_method, parse_methods
from ckptlin.scores import leading, score
from tests.grams import grams_of, spacing
from tests.trained_runs import STEPS, trained

SPECS = parse_methods([*METHODS, "damped:base=relex", "polynomial:degree=3", "dmd:rank=2"])
NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")


def a_run(seed=0, num_steps=8):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 20, num_steps))
    drift = steps[:, None] * rng.normal(size=(3, 1, 12)) / steps[-1]
    weights = drift + 0.2 * rng.normal(size=(3, num_steps, 12)).cumsum(axis=1)
    return steps, dict(zip(NAMES, weights, strict=True))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request):
    """A model that was trained, its Gram matrices and scores."""
    weights = trained(request.param)
    grams = grams_of(STEPS, weights)
    return weights, grams, score(grams, SPECS)


@pytest.mark.parametrize("method", [spec.short for spec in SPECS])
def test_the_error_is_that_of_the_weights_in_float32(run, method):
    weights, grams, scores = run
    spec = parse_method(method)
    steps = np.array(STEPS, np.float64)
    stack, pooled = grams.stack(), grams.total()
    kinds = grams.kinds()
    num_checked = 0
    for pair, (n, h) in enumerate(zip(scores.origins, scores.held_out, strict=True)):
        if n < spec.min_steps:
            assert np.isnan(scores.errors[method][:, pair]).all()
            continue
        coefficients = np.broadcast_to(
            leading(spec, steps, steps[h], stack, pooled, n), (len(grams.names), n)
        ).astype(np.float32)
        whole = 0.0
        for row, (kind, names) in enumerate(kinds.items()):
            error = move = grid = 0.0
            for name in names:
                seen = weights[name][:n].astype(np.float32).reshape(n, -1)
                true = weights[name][h].astype(np.float32).ravel()
                found = seen[-1] + coefficients[grams.names.index(name)] @ (seen - seen[-1])
                if any(pattern in name for pattern in spec.keep):
                    found = seen[-1]
                error += float(((found - true).astype(np.float64) ** 2).sum())
                move += float(((seen[-1] - true).astype(np.float64) ** 2).sum())
                grid += float((spacing(found) ** 2).sum())
            # A norm lies near 1, where float32 itself is too coarse for a small error's fourth digit.
            difference = abs(np.sqrt(scores.errors[method][row, pair]) - np.sqrt(error))
            assert difference <= 0.5e-4 * np.sqrt(error) + 0.5 * np.sqrt(grid), kind
            assert scores.moves[row, pair] == pytest.approx(move, rel=1e-6), kind
            whole += error
            num_checked += 1
        assert scores.errors[method][:, pair].sum() == pytest.approx(whole, rel=1e-4)
    assert num_checked >= 7 * len(kinds)


def test_the_whole_model_is_all_its_tensors(run):
    weights, _, scores = run
    together = {"all": np.concatenate([w.reshape(len(STEPS), -1) for w in weights.values()], axis=1)}
    whole = score(grams_of(STEPS, together), parse_methods(["ols", "wls-anchored"]))
    for method in ("ols", "wls-anchored"):
        np.testing.assert_allclose(scores.skill(method), whole.skill(method), rtol=1e-9)
    np.testing.assert_allclose(scores.ceiling(), whole.ceiling(), rtol=1e-9)


def test_the_last_checkpoint_has_no_skill_and_the_pairs_are_all_there_are(run):
    _, _, scores = run
    assert (scores.skill("persistence") == 0).all()
    found = list(zip(scores.origins.tolist(), scores.held_out.tolist(), strict=True))
    assert found == [(n, h) for n in range(3, len(STEPS)) for h in range(n, len(STEPS))]
    steps = np.array(STEPS)
    for reach, (n, h) in zip(scores.reach, found, strict=True):
        assert reach == (steps[h] - steps[0]) / (steps[n - 1] - steps[0])


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), row=st.integers(3, 7), by=st.sampled_from([1e-3, 1.0, 1e6]))
def test_what_comes_later_changes_no_coefficient(seed, row, by):
    """No look-ahead: whatever happens from ``row`` on, predictions from before it stay as they are."""
    steps, weights = a_run(seed)
    noise = np.random.default_rng(seed + 1).normal(size=(3, 8, 12))
    altered = {name: w.copy() for name, w in weights.items()}
    for w, other in zip(altered.values(), noise, strict=True):
        w[row:] += by * other[row:]
    grams, others = grams_of(steps, weights), grams_of(steps, altered)
    wide = steps.astype(np.float64)
    for spec in SPECS:
        for n in range(max(3, spec.min_steps), row + 1):
            one, two = (leading(spec, wide, wide[-1] + 5, g.stack(), g.total(), n) for g in (grams, others))
            # BLAS may sum a product in another order in a larger array: the same to the last digits.
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-8 * np.abs(one).max())


def test_a_method_is_given_nothing_but_the_past(monkeypatch):
    """The same held by looking at what a method is called with."""
    steps, weights = a_run()
    seen = []

    def spy(steps, target, gram=None, pooled=None):
        seen.append((steps.size, target, gram.shape, pooled.shape))
        return np.eye(steps.size)[-1]

    entry = METHODS["relex"]
    spec = parse_method("ols")
    object.__setattr__(spec, "entry", type(entry)("spy", spy, "looks", needs_gram=True))
    scores = score(grams_of(steps, weights), [spec])
    expected = [
        (n, float(steps[h]), (3, n, n), (n, n)) for n, h in zip(scores.origins, scores.held_out, strict=True)
    ]
    assert seen == expected


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_order_of_the_tensors_does_not_matter(seed):
    steps, weights = a_run(seed)
    turned = dict(reversed(weights.items()))
    one, two = (score(grams_of(steps, w), SPECS) for w in (weights, turned))
    for spec in SPECS:
        for kind in (None, "mlp.up_proj", "norm"):
            a, b = one.skill(spec.short, kind), two.skill(spec.short, kind)
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 3.0, 1000.0]), shift=st.integers(0, 1000))
def test_units_and_where_steps_begin_do_not_matter(seed, scale, shift):
    steps, weights = a_run(seed)
    one = score(grams_of(steps, weights), SPECS)
    two = score(grams_of(7 * steps + shift, {name: scale * w for name, w in weights.items()}), SPECS)
    for spec in SPECS:
        np.testing.assert_allclose(one.skill(spec.short), two.skill(spec.short), rtol=1e-5, atol=1e-7)


def test_the_ceiling_is_what_rounding_takes_from_a_prediction_that_is_right():
    """The true line predicts checkpoints that were rounded to bfloat16 as well as anything can."""
    rng = np.random.default_rng(0)
    steps = np.arange(0, 100, 10)
    line = rng.normal(0, 0.02, 20000) + np.outer(steps, rng.normal(0, 5e-6, 20000))
    rounded = line.astype("float32").astype(trained("bfloat16")["lm_head.weight"].dtype)
    scores = score(grams_of(steps, {"w": rounded}), parse_methods(["persistence"]))
    moved = (rounded != rounded[0]).any(axis=0)
    for pair, (n, h) in enumerate(zip(scores.origins, scores.held_out, strict=True)):
        true = rounded[h].astype(np.float64)
        error = ((line[h] - true)[moved] ** 2).sum()
        move = ((rounded[n - 1].astype(np.float64) - true) ** 2).sum()
        assert scores.ceiling()[pair] == pytest.approx(max(1 - error / move, 0), abs=0.05)


def test_where_nothing_moved_there_is_no_skill():
    steps, weights = a_run()
    for w in weights.values():
        w[5:] = w[5]
    scores = score(grams_of(steps, weights), SPECS)
    still = scores.origins > 5
    assert np.isnan(scores.ceiling()[still]).all()
    for spec in SPECS:
        skill = scores.skill(spec.short)
        assert np.isnan(skill[still]).all()
        enough = ~still & (scores.origins >= spec.min_steps)
        assert not np.isnan(skill[enough]).any()


def test_two_point_keeps_the_norms_here_as_in_its_checkpoint():
    steps, weights = a_run()
    scores = score(grams_of(steps, weights), parse_methods(["two-point"]))
    assert (scores.skill("two-point", "norm") == 0).all()
    assert (scores.skill("two-point", "mlp.up_proj") != 0).all()


@pytest.mark.parametrize(("num_steps", "found"), [(1, "only one was"), (3, "only 3 were")])
def test_too_few_checkpoints_are_refused(num_steps, found):
    steps, weights = a_run()
    grams = grams_of(steps, weights).window(range(num_steps))
    with pytest.raises(InputError, match=f"a backtest needs at least 4 checkpoints, .* and {found} selected"):
        score(grams, SPECS)


def test_what_cannot_be_judged_is_refused():
    steps, weights = a_run()
    with pytest.raises(InputError, match="needs the Gram matrix of at least one tensor"):
        score(grams_of(steps, {}), SPECS)
    weights[NAMES[1]][2, 3] = np.nan
    with pytest.raises(InputError, match=f"Gram matrix of tensor `{NAMES[1]}` has NaN or infinity"):
        score(grams_of(steps, weights), SPECS)
