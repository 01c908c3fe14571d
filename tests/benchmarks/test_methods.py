"""The score of a method on a run, against predictions made with the weights themselves."""

import json

import numpy as np
import pytest

from benchmarks.methods import FACTOR, FREE, HORIZONS, pairs_of, print_scores, ratio, save_scores, score_methods
from ckptlin.methods import parse_method, parse_methods
from tests.grams import grams_of

METHODS = parse_methods(["two-point", "persistence", "ols", "kriging", "rre"])


@pytest.fixture
def trajectories():
    rng = np.random.default_rng(0)
    steps = [10 * row for row in range(13)]
    drift = np.outer(steps, rng.normal(size=40)) / 100
    return steps, {"a": drift + 0.1 * rng.normal(size=(13, 40)).cumsum(axis=0), "b": drift[:, :7]}


def test_targets_are_the_checkpoints_nearest_to_each_horizon():
    assert pairs_of([0, 10, 20, 30, 40, 60]) == [
        # 1.25 times 20 is as near to 20, which was seen, as to 30
        (1.5, 2, 3),
        (2.0, 2, 4),
        (3.0, 2, 5),
        (1.25, 3, 4),
        (1.5, 3, 4),
        (2.0, 3, 5),
        # and 1.25 times 40 is 10 away from either neighbour
        (1.5, 4, 5),
    ]
    assert pairs_of([0, 10, 20]) == []


def test_figures_are_those_of_predictions_made_with_the_weights(trajectories):
    steps, weights = trajectories
    scores = score_methods("run", grams_of(steps, weights), METHODS)
    for method in METHODS:
        for horizon in HORIZONS:
            figures = []
            for at, last, row in pairs_of(steps):
                if at != horizon:
                    continue
                seen = {name: w[: last + 1] for name, w in weights.items()}
                grams = grams_of(steps[: last + 1], seen)
                error = still = 0.0
                for name, w in seen.items():
                    a = method.coefficients(steps[: last + 1], steps[row], grams.matrices[name], grams.total())
                    error += np.square(a @ w - weights[name][row]).sum()
                    still += np.square(w[-1] - weights[name][row]).sum()
                figures.append(error / still)
            assert scores.num_origins[horizon] == len(figures)
            assert scores.unexplained[method.short][horizon] == pytest.approx(np.mean(figures), rel=1e-9)


def test_hindsight_is_the_least_squares_of_the_target_on_what_was_seen(trajectories):
    steps, weights = trajectories
    scores = score_methods("run", grams_of(steps, weights), METHODS)
    figures = {FACTOR: [], FREE: []}
    for horizon, last, row in pairs_of(steps):
        if horizon != 2.0:
            continue
        line = parse_method("wls-anchored").coefficients(steps[: last + 1], steps[row])
        left, still = {FACTOR: 0.0, FREE: 0.0}, 0.0
        for w in weights.values():
            move = w[row] - w[last]
            still += move @ move
            for name, basis in (
                (FACTOR, (line @ w[: last + 1] - w[last])[None]),
                (FREE, np.diff(w[: last + 1], axis=0)),
            ):
                fitted = basis.T @ np.linalg.lstsq(basis.T, move, rcond=1e-5)[0]
                left[name] += np.square(move - fitted).sum()
        for name, values in figures.items():
            values.append(left[name] / still)
    for name, values in figures.items():
        assert scores.unexplained[name][2.0] == pytest.approx(np.mean(values), rel=1e-6)
    for method in METHODS:
        for horizon in HORIZONS:
            assert scores.unexplained[FREE][horizon] <= scores.unexplained[method.short][horizon]


def test_a_line_is_predicted_without_error_and_standing_still_scores_one(trajectories):
    steps, weights = trajectories
    scores = score_methods("run", grams_of(steps, {"b": weights["b"]}), METHODS)
    assert max(scores.unexplained["two-point"].values()) < 1e-12
    assert list(scores.unexplained["persistence"].values()) == pytest.approx([1.0] * 4, rel=1e-12)


def test_a_method_that_lacks_checkpoints_stands_still(trajectories):
    steps, weights = trajectories
    many = parse_method("polynomial:degree=10")
    scores = score_methods("run", grams_of(steps[:6], {"a": weights["a"][:6]}), [many])
    assert list(scores.unexplained[many.short].values()) == pytest.approx([1.0] * 3, rel=1e-12)


def test_tables_and_json_hold_the_same_figures(trajectories, tmp_path, capsys):
    steps, weights = trajectories
    scores = [score_methods("one", grams_of(steps, weights), METHODS)]
    print_scores(scores)
    printed = capsys.readouterr().out
    save_scores(tmp_path / "figures" / "methods.json", scores)
    saved = json.loads((tmp_path / "figures" / "methods.json").read_text())["runs"][0]
    assert saved["unexplained"]["ols"]["2"] == scores[0].unexplained["ols"][2.0]
    assert saved["of_two_point"]["kriging"] == ratio(scores, "kriging")[0]
    assert f"{scores[0].unexplained['ols'][2.0]:8.3f}" in printed
    assert f"{ratio(scores, 'kriging')[0]:8.3f}" in printed
