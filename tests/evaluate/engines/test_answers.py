"""What the engines answer: the same, whatever the engine, the batch and the order."""

import numpy as np
import pytest
from scipy import stats

from ckptlin.evaluate.engines import Request
from ckptlin.evaluate.sampling import Sampling
from tests.evaluate.engines.answers import answers, next_probabilities, random_prompts

GREEDY = Sampling(temperature=0, max_tokens=24)
PROMPT = (5, 9, 17, 3)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_greedy_answers_of_both_engines_are_equal(vllm, hf, make_model, architecture):
    model = make_model(architecture)
    requests = random_prompts(64)
    for engine in (vllm, hf):
        engine.load(model)
    found = answers(vllm, requests, GREEDY)
    assert len({generation.token_ids for generation in found}) > 30
    assert found == answers(hf, requests, GREEDY)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=1), Sampling(temperature=1.5, top_p=0.8, top_k=7, max_tokens=1)],
    ids=["paper", "hot"],
)
def test_tokens_are_drawn_with_the_probabilities_that_the_logits_give(engine, make_model, sampling):
    model = make_model("llama", initializer_range=0.1)
    expected = next_probabilities(model, PROMPT, sampling) * 3000
    engine.load(model)
    drawn = answers(engine, [Request(PROMPT, seed) for seed in range(3000)], sampling)
    counts = np.bincount([generation.token_ids[0] for generation in drawn], minlength=48)
    assert (expected > 0).sum() >= 5
    assert not counts[expected == 0].any()
    likely = expected >= 5
    observed = [*counts[likely], counts[~likely].sum()]
    wanted = [*expected[likely], expected[~likely].sum()]
    keep = slice(None) if wanted[-1] > 0 else slice(-1)
    assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-4


def test_the_second_token_is_drawn_given_the_first(engine, make_model):
    model = make_model("llama", initializer_range=0.1)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=3, max_tokens=2)
    first = next_probabilities(model, PROMPT, sampling)
    expected = {
        (a, b): first[a] * second[b] * 3000
        for a in np.flatnonzero(first)
        for second in [next_probabilities(model, (*PROMPT, int(a)), sampling)]
        for b in np.flatnonzero(second)
    }
    engine.load(model)
    drawn = answers(engine, [Request(PROMPT, seed) for seed in range(3000)], sampling, stop_ids=())
    counts = dict.fromkeys(expected, 0)
    for generation in drawn:
        counts[generation.token_ids] += 1
    assert stats.chisquare(list(counts.values()), list(expected.values())).pvalue > 1e-4


def test_both_engines_are_right_equally_often(vllm, hf, make_model):
    model = make_model("llama", initializer_range=0.1)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=6)
    requests = [Request((7, 3 + i % 20), i) for i in range(2000)]
    shares = []
    for engine in (vllm, hf):
        engine.load(model)
        # An arithmetic property of the whole answer stands for being right.
        shares.append(np.mean([sum(g.token_ids) % 3 == 0 for g in answers(engine, requests, sampling)]))
    mean = np.mean(shares)
    assert 0.1 < mean < 0.9
    assert abs(shares[0] - shares[1]) < 4.5 * np.sqrt(2 * mean * (1 - mean) / 2000)


def test_a_seed_gives_one_answer_in_any_batch_and_order(engine, make_model):
    engine.load(make_model("llama", initializer_range=0.1))
    sampling = Sampling(temperature=1.0, max_tokens=16)
    requests = random_prompts(90)
    together = answers(engine, requests, sampling)
    order = np.random.default_rng(1).permutation(90)
    shuffled = answers(engine, [requests[i] for i in order], sampling)
    alone = [answers(engine, [request], sampling)[0] for request in requests[:8]]
    assert len({generation.token_ids for generation in together}) > 80
    assert [g.token_ids for g in shuffled] == [together[i].token_ids for i in order]
    assert [g.token_ids for g in alone] == [g.token_ids for g in together[:8]]


def test_other_seeds_give_other_answers(engine, make_model):
    engine.load(make_model("llama", initializer_range=0.1))
    drawn = answers(
        engine,
        [Request(PROMPT, 2**47 + i) for i in range(50)],
        Sampling(temperature=1.0, top_p=1.0, max_tokens=16),
    )
    assert len({generation.token_ids for generation in drawn}) > 40


def test_an_answer_ends_with_its_stop_token_or_at_its_limit(engine, make_model):
    engine.load(make_model("llama", initializer_range=0.1))
    sampling = Sampling(temperature=1.5, top_p=1.0, max_tokens=12)
    found = answers(engine, random_prompts(100), sampling, stop_ids=(1, 4, 20))
    for generation in found:
        *inside, last = generation.token_ids
        assert not {1, 4, 20} & set(inside)
        assert generation.finished == (last in (1, 4, 20))
        assert generation.finished or len(generation.token_ids) == 12
    assert 10 < sum(generation.finished for generation in found) < 90


def test_only_the_given_tokens_end_an_answer(engine, make_model):
    engine.load(make_model("llama", initializer_range=0.1))  # its configuration names 1 as the end
    sampling = Sampling(temperature=1.5, top_p=1.0, max_tokens=30)
    found = answers(engine, random_prompts(60), sampling, stop_ids=())
    assert all(len(generation.token_ids) == 30 and not generation.finished for generation in found)
    assert any(1 in generation.token_ids[:-1] for generation in found)


def test_what_a_checkpoint_recommends_for_sampling_is_ignored(engine, make_model, tmp_path):
    from transformers import AutoModelForCausalLM, GenerationConfig

    plain = make_model("llama")
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=9.0, top_k=2, min_new_tokens=10, eos_token_id=7
    )
    model.save_pretrained(tmp_path)
    requests = random_prompts(30)
    found = []
    for directory in (plain, tmp_path):
        engine.load(directory)
        found.append(answers(engine, requests, GREEDY))
    assert found[0] == found[1]


def test_greedy_is_what_no_seed_changes(engine, make_model):
    engine.load(make_model("llama"))
    found = answers(engine, [Request(PROMPT, seed) for seed in range(5)], GREEDY)
    assert len({generation.token_ids for generation in found}) == 1


def test_no_requests_give_no_answers(engine, make_model):
    engine.load(make_model("llama"))
    assert list(engine.generate([], GREEDY, stop_ids=[1])) == []


def test_answers_that_are_given_up_leave_the_engine_as_it_was(engine, make_model):
    engine.load(make_model("llama"))
    requests = random_prompts(300)
    wanted = answers(engine, requests, GREEDY)
    for _ in range(3):
        generations = engine.generate(requests, GREEDY, stop_ids=[1])
        next(generations)
        generations.close()
    assert answers(engine, requests, GREEDY) == wanted
