"""How checkpoints are scored, and what the figures are compared by."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from ckptlin.demo import base_model
from ckptlin.demo.answers import write_answers
from ckptlin.demo.corpus import encode, longest_completion
from ckptlin.demo.evaluation import Evaluation, answer_probabilities, difference, distance, evaluate
from ckptlin.demo.rewards import measure_rise
from ckptlin.errors import InputError
from ckptlin.problems import draw_sums, make_sum
from ckptlin.problems.sums import build_tokenizer
from ckptlin.rl.sampled_rewards import SampledRewards

HELD_OUT = draw_sums(150, split="test", seed=7)


@pytest.fixture(scope="module")
def base():
    """The shipped model on held-out sums."""
    return evaluate(base_model(), HELD_OUT, num_samples=4, seed=0)


def test_what_is_sampled_agrees_with_what_is_computed(base):
    p, num_samples = base.probabilities, base.sampled.rewards.shape[1]
    deviation = np.sqrt((p * (1 - p)).sum() / num_samples) / p.size
    assert abs(base.pass_at_1 - base.computed) < 4 * deviation
    assert base.sampled.rewards.shape == (len(HELD_OUT), 4)
    assert set(np.unique(base.sampled.rewards)) == {0.0, 1.0}


def test_the_probability_of_an_answer_is_the_product_over_its_tokens():
    tokenizer = AutoTokenizer.from_pretrained(base_model())
    model = AutoModelForCausalLM.from_pretrained(base_model()).eval()
    problems = [make_sum((0, 1, 2, 3, 4)), make_sum((9, 9, 9, 9, 9)), HELD_OUT[0]]
    expected = []
    for problem in problems:
        text, probability = problem.problem, 1.0
        for letter in f"{problem.answer}#":
            with torch.inference_mode():
                logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
            probability *= float(torch.softmax(logits.double(), 0)[tokenizer(letter)["input_ids"][0]])
            text += letter
        expected.append(probability)
    np.testing.assert_allclose(answer_probabilities(base_model(), problems), expected, rtol=1e-4)


def test_the_standard_error_is_that_of_the_means_of_problems(base):
    expected = stats.sem(base.sampled.rewards.mean(axis=1))
    assert base.standard_error == pytest.approx(expected)


def test_a_difference_is_paired_by_problems(base):
    other = Evaluation(
        SampledRewards(np.roll(base.sampled.rewards, 1, axis=0), base.sampled.tokens), base.probabilities
    )
    found = difference(other, base)
    paired = stats.ttest_rel(other.sampled.rewards.mean(axis=1), base.sampled.rewards.mean(axis=1))
    assert found.mean == pytest.approx(0.0, abs=1e-12)
    assert found.standard_error > 0
    shifted = Evaluation(SampledRewards(base.sampled.rewards * 0.5, 0), base.probabilities)
    less = difference(shifted, base)
    paired = stats.ttest_rel(shifted.sampled.rewards.mean(axis=1), base.sampled.rewards.mean(axis=1))
    assert less.mean / less.standard_error == pytest.approx(paired.statistic)
    assert less.is_clear
    assert not found.is_clear


def test_the_same_seed_samples_the_same_answers(base):
    again = evaluate(base_model(), HELD_OUT, num_samples=4, seed=0)
    np.testing.assert_array_equal(again.sampled.rewards, base.sampled.rewards)
    other = evaluate(base_model(), HELD_OUT, num_samples=4, seed=1)
    assert (other.sampled.rewards != base.sampled.rewards).any()


def test_only_the_solution_is_scored_and_it_can_be_read_back(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    problems = [make_sum((1, 2, 3)), make_sum((9, 9, 9))]
    encoded = encode(problems, tokenizer)
    assert len(encoded) == 2
    for ids, labels, problem in zip(encoded.input_ids, encoded.labels, problems, strict=True):
        assert tokenizer.decode(labels[labels >= 0]) == f"{problem.solution}#"
        assert tokenizer.decode(ids, skip_special_tokens=False).startswith(
            f"{problem.problem}{problem.solution}#"
        )
        assert (ids[labels >= 0] == labels[labels >= 0]).all()


@pytest.mark.parametrize("num_terms", [2, 3, 5])
def test_no_answer_is_longer_than_the_longest(num_terms):
    lengths = [len(f"{problem.answer}#") for problem in draw_sums(100, num_terms=num_terms)]
    assert max(lengths) <= longest_completion(num_terms)


def test_answers_are_what_the_model_writes_to_a_prompt():
    answers = write_answers(base_model(), HELD_OUT[:8], seed=0)
    assert [answer.prompt for answer in answers] == [problem.problem for problem in HELD_OUT[:8]]
    assert all(answer.expected == f"{p.answer}#" for answer, p in zip(answers, HELD_OUT, strict=False))
    assert all(set(answer.text) <= set("0123456789;#") and answer.text for answer in answers)
    assert any(answer.is_right for answer in answers)
    assert not all(answer.is_right for answer in answers)


def test_the_distance_of_a_checkpoint_to_itself_is_zero():
    assert distance(base_model(), base_model()) == 0.0


# --- rewards ------------------------------------------------------------------------------------------


def test_the_rise_in_standard_errors_is_welchs_statistic():
    rewards = np.random.default_rng(0).random(200) + np.linspace(0, 0.5, 200)
    rise = measure_rise(rewards)
    expected = stats.ttest_ind(rewards[-50:], rewards[:50], equal_var=False)
    assert rise.window == 50
    assert rise.num_standard_errors == pytest.approx(expected.statistic)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.1, 0.12, 0.11, 0.5, 0.52, 0.51], "The reward rose from 0.110 over the first 3 steps to 0.510"),
        ([0.5, 0.52, 0.51, 0.1, 0.12, 0.11], "The reward fell from 0.510"),
        ([0.1, 0.5, 0.3, 0.2, 0.5, 0.3], "is within the noise"),
        ([0.3, 0.3, 0.3, 0.3], "is within the noise"),
        ([0.0, 0.0, 1.0, 1.0], "The reward rose"),
    ],
)
def test_what_is_said_of_the_reward_depends_on_its_noise(rewards, expected):
    [line] = measure_rise(rewards).verdict()
    assert expected in line


def test_a_run_of_three_steps_has_no_rise():
    with pytest.raises(InputError, match="at least 4"):
        measure_rise([0.1, 0.2, 0.3])
