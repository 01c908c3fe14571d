"""One checkpoint after another in one engine, and what cannot be loaded or answered."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ckptlin.demo import base_model
from ckptlin.errors import CheckpointError, CkptlinError, InputError, MissingExtraError, SelectionError
from ckptlin.evaluate.engines import EngineOptions, Request, open_engine
from ckptlin.evaluate.sampling import Sampling
from tests.evaluate.engines.answers import answers, random_prompts

GREEDY = Sampling(temperature=0, max_tokens=16)
# vLLM's CPU build keeps prefixes in blocks of 128 tokens: these share two.
LONG = [Request((*(2 + i * 7 % 45 for i in range(280)), 5 + last), last) for last in range(6)]


def test_each_checkpoint_in_one_engine_answers_as_in_an_engine_of_its_own(vllm, hf, make_model):
    checkpoints = [make_model("llama", seed=seed) for seed in range(3)]
    requests = [*LONG, *random_prompts(10)]
    vllm.load(checkpoints[0])
    core = vllm._core
    in_one = []
    for checkpoint in [*checkpoints, checkpoints[0]]:
        vllm.load(checkpoint)
        in_one.append([answers(vllm, requests, GREEDY), answers(vllm, requests, Sampling(max_tokens=16))])
    assert vllm._core is core
    by_hf = []
    for checkpoint in [*checkpoints, checkpoints[0]]:
        hf.load(checkpoint)
        by_hf.append(answers(hf, requests, GREEDY))
    assert [greedy for greedy, _ in in_one] == by_hf
    assert len({tuple(generation.token_ids for generation in greedy) for greedy in by_hf}) == 3
    for checkpoint, found in list(zip(checkpoints, in_one, strict=False))[1:]:
        vllm.close()
        vllm.load(checkpoint)
        assert [
            answers(vllm, requests, GREEDY),
            answers(vllm, requests, Sampling(max_tokens=16)),
        ] == found
    assert vllm._core is not core


def test_tied_and_sharded_checkpoints_follow_each_other(vllm, hf, make_model):
    for is_tied in (True, False):
        for seed, shard in ((0, "50GB"), (1, "60KB"), (2, "50GB")):
            checkpoint = make_model("llama", seed=seed, shard=shard, tie_word_embeddings=is_tied)
            assert (len(list(checkpoint.glob("*.safetensors"))) > 1) == (shard == "60KB")
            for engine in (vllm, hf):
                engine.load(checkpoint)
            assert answers(vllm, LONG, GREEDY) == answers(hf, LONG, GREEDY)


def test_another_architecture_gets_an_engine_of_its_own(vllm, hf, make_model):
    vllm.load(make_model("llama"))
    for model in (make_model("qwen3"), make_model("llama", num_hidden_layers=1)):
        core = vllm._core
        for engine in (vllm, hf):
            engine.load(model)
        assert vllm._core is not core
        assert answers(vllm, LONG, GREEDY) == answers(hf, LONG, GREEDY)


@pytest.mark.parametrize("what", ["nothing", "empty", "no config", "cut short", "no shard", "bad config"])
def test_a_model_that_cannot_be_loaded_is_named(engine, make_model, tmp_path, what):
    path = tmp_path / "model"
    if what == "empty":
        path.mkdir()
    elif what != "nothing":
        shutil.copytree(make_model("llama", shard="60KB"), path)
        shard = sorted(path.glob("*.safetensors"))[1]
        if what == "no config":
            (path / "config.json").unlink()
        elif what == "bad config":
            (path / "config.json").write_text(json.dumps({"model_type": "abacus"}))
        elif what == "no shard":
            shard.unlink()
        else:
            shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises((InputError, CheckpointError), match="model"):
        engine.load(path)


def test_a_checkpoint_without_some_tensors_is_refused(engine, make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    whole = make_model("llama")
    shutil.copytree(whole, tmp_path / "part")
    weights = load_file(whole / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    engine.load(whole)
    wanted = answers(engine, LONG, GREEDY)
    with pytest.raises(InputError, match=r"lacks 1 of the tensors .*`model.layers.1.mlp.up_proj.weight`"):
        engine.load(tmp_path / "part")
    with pytest.raises(CkptlinError, match="no model"):
        engine.generate(LONG, GREEDY, stop_ids=[1])
    engine.load(whole)
    assert answers(engine, LONG, GREEDY) == wanted


def test_a_reload_that_breaks_off_leaves_no_mixture(vllm, make_model, monkeypatch):
    first, second = make_model("llama", seed=0), make_model("llama", seed=1)
    vllm.load(first)
    wanted = answers(vllm, LONG, GREEDY)
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    whole = DefaultModelLoader.get_all_weights

    def breaking(*args):
        for number, item in enumerate(whole(*args)):
            if number == 7:
                raise OSError("the disk is gone")
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(DefaultModelLoader, "get_all_weights", breaking)
        with pytest.raises(InputError, match=r"cannot run model .*: the disk is gone"):
            vllm.load(second)
    with pytest.raises(CkptlinError, match="no model"):
        vllm.generate(LONG, GREEDY, stop_ids=[1])
    vllm.load(first)
    assert answers(vllm, LONG, GREEDY) == wanted


def test_an_interrupt_inside_a_step_costs_the_answers_alone(vllm, make_model, monkeypatch):
    vllm.load(make_model("llama"))
    wanted = answers(vllm, LONG, GREEDY)
    engine = vllm._core._llm.llm_engine
    step, calls = engine.step, []

    def interrupted():
        calls.append(step())
        if len(calls) == 4:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers(vllm, LONG, GREEDY)
    assert answers(vllm, LONG, GREEDY) == wanted


@pytest.mark.parametrize(
    ("request_", "stop_ids", "message"),
    [
        (Request((), 0), [1], "prompt 1 is empty"),
        (Request((5,) * 305, 0), [1], "prompt 1 has 305 tokens and its answer may have 16"),
        (Request((5, 48), 0), [1], "prompt 1 has token 48, .* vocabulary of 48"),
        (Request((5, -1), 0), [1], "prompt 1 has token -1"),
        (Request((5,), 0), [48], "stop token 48"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(engine, make_model, request_, stop_ids, message):
    engine.load(make_model("llama"))
    with pytest.raises(InputError, match=message):
        engine.generate([Request((5,), 0), request_], GREEDY, stop_ids=stop_ids)


def test_the_longest_request_is_answered_in_full(engine, make_model):
    engine.load(make_model("llama"))
    (found,) = answers(engine, [Request((5,) * 304, 0)], GREEDY, stop_ids=())
    assert len(found.token_ids) == 16


def test_a_model_with_a_shorter_context_is_refused(engine):
    with pytest.raises(InputError, match=r"takes 128 tokens, but .* 320"):
        engine.load(base_model())


def test_heads_without_a_kernel_are_refused_with_what_to_do(vllm, hf, make_model):
    model = make_model("llama", head_dim=16)
    with pytest.raises(InputError, match=r"heads of size 16, .* choose --engine hf"):
        vllm.load(model)
    hf.load(model)
    assert len(answers(hf, LONG, GREEDY)) == len(LONG)


def test_one_generation_at_a_time(vllm, make_model):
    vllm.load(make_model("llama"))
    first = vllm.generate(random_prompts(300), GREEDY, stop_ids=[1])
    next(first)
    with pytest.raises(CkptlinError, match="generates already"):
        next(vllm.generate(LONG, GREEDY, stop_ids=[1]))
    with pytest.raises(CkptlinError, match="before another model"):
        vllm.load(make_model("qwen3"))
    first.close()
    assert len(answers(vllm, LONG, GREEDY)) == len(LONG)


def test_the_process_stays_as_it_was(engine, make_model, capfd, monkeypatch):
    import os

    engine.close()
    engine_environment = dict(os.environ)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    engine.load(make_model("llama"))
    answers(engine, LONG, Sampling(max_tokens=8))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert torch.set_num_threads.__name__ == "set_num_threads"
    changed = {
        name
        for name in os.environ.keys() | engine_environment
        if os.environ.get(name) != engine_environment.get(name)
    }
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in changed
    assert not {name for name in changed if name.startswith("VLLM_CPU")}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf", {"data_parallel": 2}, "data_parallel=2 is one of engine vllm"),
        ("hf", {"kv_cache_gib": 1.0}, "kv_cache_gib"),
        ("hf", {"device": "abacus"}, "device 'abacus' cannot be used"),
        ("hf", {"dtype": "int4"}, "dtype is 'int4'"),
        ("hf", {"batch_size": 0}, "batch_size is 0"),
        pytest.param(
            "vllm",
            {"device": "cpu"},
            "is one of engine hf",
            marks=pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')"),
        ),
    ],
)
def test_options_of_another_engine_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        open_engine(name, EngineOptions(64, **options))


def test_an_engine_that_is_not_there_is_told(monkeypatch):
    with pytest.raises(SelectionError, match="no engine 'sglang'; choose vllm or hf"):
        open_engine("sglang", EngineOptions(64))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("vllm", r"ckptlin\[vllm\]"), ("hf", r"ckptlin\[models\]")):
        with pytest.raises(MissingExtraError, match=extra):
            open_engine(name, EngineOptions(64))


def test_an_engine_says_what_answers_depend_on(engine, make_model):
    engine.load(make_model("llama"))
    described = engine.describe()
    assert (described["engine"], described["dtype"], described["device"]) == (engine.name, "float32", "cpu")
    assert json.loads(json.dumps(described)) == described


def test_a_second_engine_in_the_process_is_refused(vllm, make_model):
    from ckptlin.errors import CkptlinError
    from ckptlin.evaluate.engines import EngineOptions, open_engine

    vllm.load(make_model())
    with (
        open_engine("vllm", EngineOptions(64, dtype="float32", kv_cache_gib=0.125)) as second,
        pytest.raises(CkptlinError, match="an engine vllm is open in this process already"),
    ):
        second.load(make_model())


THREADS = """
import sys, torch
from ckptlin.evaluate.engines import EngineOptions, Request, open_engine
from ckptlin.evaluate.sampling import Sampling
small, large = sys.argv[1:]
requests = [Request(tuple(range(2, 5 + n)), n) for n in range(8)]
sampling = Sampling(temperature=0.0, max_tokens=8, num_samples=1)
def answers(name, model):
    device = "cpu" if name == "hf" else None
    with open_engine(name, EngineOptions(64, dtype="float32", device=device)) as engine:
        engine.load(model)
        found = {
            g.index: g.token_ids for some in engine.generate(requests, sampling, stop_ids=[1]) for g in some
        }
        return [found[index] for index in range(8)]
torch.set_num_threads(2)
answers("vllm", small)
torch.set_num_threads(1)
assert answers("vllm", large) == answers("hf", large)
assert torch.get_num_threads() == 1
"""


def test_a_process_that_changes_its_threads_has_the_same_answers(make_model):
    models = [make_model("llama"), make_model("qwen3", hidden_size=96, intermediate_size=128)]
    done = subprocess.run(
        [sys.executable, "-c", THREADS, *map(str, models)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
