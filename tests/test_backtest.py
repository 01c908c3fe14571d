"""Tables over horizons, the verdict, and the choice of a method."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.backtest import AUTO, HORIZONS, backtest, choose, horizon_bounds
from ckptlin.errors import InputError, SelectionError
from ckptlin.methods import METHODS, parse_method
from tests.grams import grams_of
from tests.trained_runs import STEPS, trained

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
FEW = ["two-point", "ols", "damped", "persistence"]


def a_run(kind, seed=0, num_steps=12, num_params=300):
    """A run of three tensors that drifts, walks, settles, or jumps about its drift."""
    rng = np.random.default_rng(seed)
    steps = np.arange(num_steps) * 10
    t = steps[:, None] / steps[-1]
    weights = {}
    for name in NAMES:
        drift, noise = rng.normal(size=num_params), rng.normal(size=(num_steps, num_params))
        weights[name] = {
            "drift": t * drift + 0.02 * noise,
            "walk": noise.cumsum(axis=0),
            "settles": (1 - np.exp(-3 * t)) * drift + 0.01 * noise,
            "jumps": t * drift + 0.08 * noise,
        }[kind]
    return steps, weights


@pytest.fixture(scope="module")
def trained_result():
    return backtest(grams_of(STEPS, trained("bfloat16")))


def test_a_mean_over_origins_is_that_of_the_pairs_near_a_horizon(trained_result):
    """By hand: every pair of a prefix and a later step, sorted by hand into horizons."""
    result = trained_result
    edges = [
        math.sqrt(1 * 1.25),
        math.sqrt(1.25 * 1.5),
        math.sqrt(1.5 * 2),
        math.sqrt(2 * 3),
        math.sqrt(3 * 4.5),
    ]
    for method in result.names:
        skill = dict(zip(zip(result.scores.origins, result.scores.held_out, strict=True),
                         result.scores.skill(method), strict=True))  # fmt: skip
        for horizon, low, high in zip(HORIZONS, edges, edges[1:], strict=False):
            assert horizon_bounds(horizon) == pytest.approx((low, high))
            by_origin = []
            for n in range(3, len(STEPS)):
                inside = [skill[n, h] for h in range(n, len(STEPS)) if low <= STEPS[h] / STEPS[n - 1] < high]
                if inside and not np.isnan(inside).all():
                    by_origin.append(np.mean(inside))
            figures = result.figures(method, horizon)
            assert figures.num_origins == len(by_origin)
            assert figures.mean == pytest.approx(np.mean(by_origin))
            assert figures.std == pytest.approx(np.std(by_origin, ddof=1))
            assert (figures.low, figures.high) == pytest.approx((min(by_origin), max(by_origin)))


def test_the_best_in_hindsight_is_the_highest_mean_and_the_reach_ends_where_it_is_not_above_zero(
    trained_result,
):
    for verdict in trained_result.horizons:
        means = {m: trained_result.figures(m, verdict.horizon).mean for m in METHODS if m != "persistence"}
        assert verdict.best == max(means, key=means.get)
        assert verdict.figures.mean == max(means.values()) > 0
        assert verdict.auto == trained_result.figures(AUTO, verdict.horizon)
    assert trained_result.reach == 3
    told = trained_result.sentences()
    assert len(told) == len(HORIZONS) + 1
    assert told[-1] == "Up to 3 spans, the furthest that was tried, the last checkpoint is beaten."


def test_a_walk_is_beaten_by_nothing():
    result = backtest(grams_of(*a_run("walk")), ["two-point", "ols", "anchored"])
    assert result.reach is None
    assert all(verdict.best is None for verdict in result.horizons)
    assert result.sentences()[0].startswith("At 1.25 spans nothing beats the last checkpoint")
    assert result.sentences()[-1] == "Nothing beats the last checkpoint at any horizon."


def test_where_a_run_turns_back_the_reach_ends():
    """A line up to step 30, and at step 60 it is back beyond where it began."""
    steps = [0, 10, 20, 25, 30, 60]
    weights = np.outer([0.0, 10.0, 20.0, 25.0, 30.0, -30.0], np.random.default_rng(0).normal(size=200))
    result = backtest(grams_of(steps, {"w": weights}), ["two-point"])
    assert [verdict.best for verdict in result.horizons] == ["two-point", "two-point", None, None]
    assert [round(verdict.figures.mean, 9) for verdict in result.horizons[:2]] == [1, 1]
    assert result.reach == 1.5
    assert result.sentences()[-1] == "Beyond 1.5 spans nothing beats the last checkpoint."


@pytest.mark.parametrize("kind", ["drift", "walk", "settles", "jumps"])
@settings(max_examples=8)
@given(seed=st.integers(0, 1000))
def test_auto_is_what_each_prefix_alone_would_have_chosen(kind, seed):
    """No look-ahead: choose again from the window alone, and find the same method and the same error."""
    steps, weights = a_run(kind, seed, num_steps=9, num_params=20)
    grams = grams_of(steps, weights)
    result = backtest(grams, FEW)
    pairs = zip(result.scores.origins, result.scores.held_out, result.chosen, strict=True)
    for pair, (n, h, chosen) in enumerate(pairs):
        verdict = choose(grams.window(range(n)), steps[h], FEW)
        assert verdict.method.short == chosen
        assert result.scores.skill(AUTO)[pair] == result.scores.skill(chosen)[pair]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), row=st.integers(4, 8))
def test_what_comes_later_changes_no_choice(seed, row):
    steps, weights = a_run("jumps", seed, num_steps=9, num_params=20)
    altered = {name: w.copy() for name, w in weights.items()}
    for w in altered.values():
        w[row:] = 100 * np.random.default_rng(seed).normal(size=w[row:].shape)
    one, two = backtest(grams_of(steps, weights)), backtest(grams_of(steps, altered))
    before = one.scores.origins <= row
    assert [c for c, b in zip(one.chosen, before, strict=True) if b] == [
        c for c, b in zip(two.chosen, before, strict=True) if b
    ]


def test_a_method_that_is_clearly_better_is_chosen_and_said_to_be():
    """Checkpoints jump about a line: the line through all is right, that from the last is not."""
    steps, weights = a_run("jumps", num_steps=20)
    result = backtest(grams_of(steps, weights), ["damped", "ols", "two-point"])
    verdict = choose(result, 2 * steps[-1])
    assert verdict.method == parse_method("ols")
    assert "ols had a mean skill of" in verdict.reason
    assert "clearly more than damped" in verdict.reason
    assert verdict.expected.mean > 0.5
    assert not verdict.is_beyond_reach
    honest, best, default = (result.figures(m, 1.25).mean for m in (AUTO, "ols", "damped"))
    assert default + 0.1 < honest < best


@pytest.mark.parametrize("kind", ["drift", "settles"])
def test_where_nothing_is_clearly_better_damped_is_used(kind):
    grams = grams_of(*a_run(kind))
    verdict = choose(grams, 220, ["two-point", "damped", "persistence"])
    assert verdict.method.name == "damped"
    assert verdict.reach == 2
    assert verdict.expected.mean > 0.3
    assert verdict.expected.num_origins == 9
    assert verdict.is_tested
    assert not verdict.is_beyond_reach
    assert "nothing was clearly better" in verdict.reason


def test_a_walk_is_beyond_reach():
    verdict = choose(grams_of(*a_run("walk", num_steps=16)), 300, ["two-point", "ols"])
    assert verdict.is_beyond_reach
    assert verdict.expected.mean < 0


def test_a_target_further_than_all_that_was_tried_is_said_to_be_untested():
    grams = grams_of(*a_run("drift", num_steps=6))
    assert choose(grams, 100).is_tested
    verdict = choose(grams, 1000)
    assert not verdict.is_tested
    assert verdict.reason.endswith("none of them reached as far as the target")
    assert verdict.reach == 20


def test_the_expected_skill_is_of_predictions_of_about_that_reach():
    steps = np.arange(20) * 10
    grams = grams_of(steps, {"w": np.outer(steps**0.6, np.random.default_rng(0).normal(size=50))})
    near, far = (choose(grams, target, ["two-point"]).expected for target in (200, 500))
    assert near.reach < far.reach
    assert near.mean > far.mean + 0.2


@pytest.mark.parametrize("num_steps", [2, 3])
def test_without_a_past_damped_is_used_and_nothing_expected(num_steps):
    verdict = choose(grams_of(*a_run("drift")).window(range(num_steps)), 500)
    assert verdict.method.name == "damped"
    assert verdict.expected is None
    assert verdict.ceiling is None
    assert not verdict.is_tested
    assert verdict.reason == f"{num_steps} checkpoints hold no past to judge by; damped is used without"


@pytest.mark.parametrize("target", [-10, 0, 35, 110])
def test_a_target_that_was_reached_is_no_matter_of_prediction(target):
    grams = grams_of(*a_run("drift"))
    for past in (grams, backtest(grams, FEW)):
        verdict = choose(past, target)
        assert verdict.method == parse_method("ols")
        assert verdict.expected is None
        assert f"step {target} is not after the last that was observed, 110" in verdict.reason


def test_a_model_that_never_moved_is_kept():
    steps, weights = a_run("drift")
    grams = grams_of(steps, {name: np.ones_like(w) for name, w in weights.items()})
    verdict = choose(grams, 300)
    assert verdict.method.name == "damped"
    assert verdict.expected is None
    assert "nothing ever moved" in verdict.reason
    result = backtest(grams)
    assert all(verdict.figures is None for verdict in result.horizons)
    assert result.reach is None
    assert result.sentences() == ("No checkpoint lies far enough ahead of a prefix to be predicted.",)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 100.0]), shift=st.integers(0, 1000))
def test_units_and_the_order_of_tensors_do_not_matter_to_the_choice(seed, scale, shift):
    steps, weights = a_run("jumps", seed, num_steps=8, num_params=20)
    turned = {name: scale * w for name, w in reversed(weights.items())}
    one = choose(grams_of(steps, weights), 140, FEW)
    two = choose(grams_of(3 * steps + shift, turned), 420 + shift, FEW)
    assert one.method == two.method
    assert one.expected == pytest.approx(two.expected, rel=1e-6)


def test_a_choice_from_a_result_is_that_from_its_matrices(trained_result):
    grams = grams_of(STEPS, trained("bfloat16"))
    one, two = choose(grams, 180), choose(trained_result, 180)
    assert one == two
    data = json.loads(json.dumps(one.to_dict()))
    assert data["method"] == str(one.method)
    assert data["expected_skill"]["mean"] == one.expected.mean


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_of_rounding_is_that_of_predictions_rounded_in_full(dtype):
    """With every parameter in the sample the estimate is exact."""
    weights = trained(dtype)
    grams = grams_of(STEPS, weights, num_samples=10**6)
    result = backtest(grams, ["wls-anchored"])
    for verdict in result.horizons:
        low, high = horizon_bounds(verdict.horizon)
        before = after = 0.0
        for n in range(3, len(STEPS)):
            for h in range(n, len(STEPS)):
                if not low <= STEPS[h] / STEPS[n - 1] < high:
                    continue
                coefficients = parse_method("wls-anchored").coefficients(STEPS[:n], STEPS[h])
                for w in weights.values():
                    seen = w[:n].astype(np.float64).reshape(n, -1)
                    found, true = coefficients @ seen, w[h].astype(np.float64).ravel()
                    before += ((found - true) ** 2).sum()
                    after += ((found.astype(w.dtype).astype(np.float64) - true) ** 2).sum()
        assert verdict.rounding_ratio == pytest.approx(after / before, rel=1e-3)
        assert (abs(verdict.rounding_ratio - 1) < 1e-4) == (dtype == "float32")


def test_a_sample_estimates_the_ratio_of_rounding():
    weights = trained("bfloat16")
    few, all_of_them = (backtest(grams_of(STEPS, weights, n), ["damped"]) for n in (100, 10**6))
    for one, two in zip(few.horizons, all_of_them.horizons, strict=True):
        assert one.rounding_ratio == pytest.approx(two.rounding_ratio, rel=0.1)


def test_where_the_grid_is_coarse_rounding_matters_and_is_spoken_of():
    rng = np.random.default_rng(0)
    steps = np.arange(12) * 10
    weights = rng.normal(0, 0.02, 2000) + np.outer(steps, rng.normal(0, 1e-5, 2000))
    result = backtest(grams_of(steps, {"w": weights.astype(ml_dtypes.bfloat16)}), ["ols", "damped"])
    ratios = [verdict.rounding_ratio for verdict in result.horizons]
    assert all(1.02 < ratio < 2 for ratio in ratios)
    expected = (
        "Rounded to the checkpoints' dtype, predictions of auto have "
        f"{min(ratios):.2f} to {max(ratios):.2f} of these squared errors."
    )
    assert result.sentences()[-2] == expected


def test_without_samples_nothing_is_said_of_rounding():
    steps, weights = a_run("drift")
    grams = grams_of(steps, {name: w.astype(ml_dtypes.bfloat16) for name, w in weights.items()}, 0)
    result = backtest(grams, FEW)
    assert all(verdict.rounding_ratio is None for verdict in result.horizons)
    assert all(0 < verdict.ceiling < 1 for verdict in result.horizons)


def test_rows_and_dict_say_what_the_figures_say(trained_result):
    data = json.loads(json.dumps(trained_result.to_dict()))
    rows = {(row["level"], row["name"], row["method"], row["horizon"]): row for row in data["skill"]}
    kinds = trained_result.scores.kinds
    assert len(rows) == len(data["skill"]) == (1 + len(kinds)) * len(trained_result.names) * len(HORIZONS)
    for kind in (None, *kinds):
        for method in trained_result.names:
            for horizon in HORIZONS:
                row = rows["kind" if kind else "model", kind or "model", method, horizon]
                figures = trained_result.figures(method, horizon, kind)
                assert {name: row[name] for name in figures._fields} == figures._asdict()
    assert data["verdict"] == list(trained_result.sentences())
    assert sum(data["auto_chose"].values()) == len(trained_result.chosen)
    assert data["methods"] == {name: str(parse_method(name)) for name in METHODS}


def test_a_result_shows_itself_in_one_line(trained_result):
    assert re.fullmatch(
        r"BacktestResult\(11 steps, 14 methods; best at 1.25: \S+ 0\.\d\d, .*\)", repr(trained_result)
    )


def test_what_cannot_be_judged_is_refused():
    grams = grams_of(*a_run("drift"))
    with pytest.raises(InputError, match="a backtest needs at least 4 checkpoints"):
        backtest(grams.window([0, 1, 2]))
    with pytest.raises(SelectionError, match="there is no method 'olz'"):
        backtest(grams, ["olz"])
    with pytest.raises(InputError, match="no method was given"):
        backtest(grams, [])
