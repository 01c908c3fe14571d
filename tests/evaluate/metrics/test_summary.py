import json

import numpy as np
import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics import majority_at_k, pass_at_k, summarise


def graded(num_problems, num_samples, seed=0):
    generator = np.random.default_rng(seed)
    p = generator.beta(0.8, 0.8, num_problems)
    votes = [np.where(generator.random(num_samples) < q, 0, generator.integers(1, 5, num_samples)) for q in p]
    return [(v == 0).astype(float) for v in votes], votes


def test_every_estimate_is_the_mean_of_its_metric():
    scores, votes = graded(30, 16)
    found = summarise(scores, votes=votes)
    ks = (1, 2, 4, 8, 16)
    assert list(found.estimates) == ["avg@16", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks)]
    correct = [s.sum() for s in scores]
    for k in ks:
        assert found.estimates[f"pass@{k}"].value == pytest.approx(pass_at_k(correct, 16, k).mean())
        expected = np.mean([majority_at_k(v, v == 0, k) for v in votes])
        assert found.estimates[f"maj@{k}"].value == pytest.approx(expected)
    assert found.estimates["avg@16"].value == pytest.approx(found.estimates["pass@1"].value)


def test_intervals_over_samples_are_the_narrower_ones_with_many_samples():
    scores, votes = graded(30, 64)
    for estimate in summarise(scores, votes=votes, ks=[1, 4]).estimates.values():
        assert estimate.over_samples.width < estimate.over_problems.width
        assert estimate.value in estimate.over_samples
        assert estimate.value in estimate.over_problems
        assert estimate.warnings == ()


def test_the_same_seed_gives_the_same_summary():
    scores, votes = graded(10, 8)
    assert summarise(scores, votes=votes, seed=3) == summarise(scores, votes=votes, seed=3)


def test_problems_may_have_different_numbers_of_samples():
    found = summarise([[1, 0, 0], [1, 1, 1, 0, 1]], num_tokens=[[1, 2, 3], [4, 5, 6, 7, 8]])
    assert found.num_samples == 3
    assert list(found.estimates) == ["avg@3", "pass@1", "pass@2", "pass@3"]
    assert found.estimates["avg@3"].value == pytest.approx((1 / 3 + 4 / 5) / 2)
    assert found.lengths.num_samples == 8


def test_shares_count_in_avg_and_not_in_pass():
    found = summarise([[0.5, 1.0], [0.0, 0.5]] * 15)
    assert found.estimates["avg@2"].value == pytest.approx(0.5)
    assert found.estimates["pass@1"].value == pytest.approx(0.25)


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_when_all_problems_are_alike_intervals_have_a_width_and_a_warning(score, num_samples):
    found = summarise([[score] * num_samples] * 30, votes=[[0] * num_samples] * 30)
    for estimate in found.estimates.values():
        assert estimate.over_problems.width > 0.05
        assert estimate.over_samples.width > 0.0
        assert any("all problems have the same value" in warning for warning in estimate.warnings)


def test_one_sample_a_problem_warns_that_the_two_kinds_cannot_be_told_apart():
    estimate = summarise([[0.0], [1.0]] * 20).estimates["pass@1"]
    assert any("one sample of a problem" in warning for warning in estimate.warnings)
    assert estimate.over_samples.width == pytest.approx(estimate.over_problems.width, rel=0.05)


@pytest.mark.parametrize(
    ("scores", "warning"),
    [([[1, 0]] * 29, "29 problems are few"), ([[1, 1]] * 29 + [[0, 0]], "this is 0.967")],
)
def test_outside_of_what_was_tried_there_is_a_warning(scores, warning):
    assert any(warning in text for text in summarise(scores).estimates["pass@1"].warnings)


def test_it_becomes_json():
    scores, votes = graded(5, 4)
    found = summarise(scores, votes=votes, num_tokens=[[1, 2, 3, 4]] * 5, finished=[[True] * 4] * 5)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["estimates"]["maj@2"]["over_samples"]["level"] == 0.95
    assert content["lengths"]["share_truncated"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": []}, "no problem"),
        ({"scores": [[1, 0]], "ks": [3]}, "k = 3 is not from 1 to 2"),
        ({"scores": [[1, 0]], "votes": [[0]]}, "votes of problem 0 has shape"),
        ({"scores": [[float("nan")]]}, "not from 0 to 1"),
    ],
)
def test_input_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        summarise(**arguments)
