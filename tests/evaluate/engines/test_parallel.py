"""vLLM in processes of its own: one, as on a GPU, and several by data parallelism."""

import pytest

from ckptlin.evaluate.engines import EngineOptions, open_engine
from ckptlin.evaluate.sampling import Sampling
from tests.evaluate.engines.answers import answers, random_prompts


@pytest.mark.slow
# vLLM leaves the sockets to its processes to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["own process", "data"])
def test_processes_of_its_own_answer_as_this_one_does(vllm, make_model, monkeypatch, how):
    checkpoints = [make_model("llama", seed=seed, tie_word_embeddings=True) for seed in range(2)]
    requests = random_prompts(40)
    samplings = (Sampling(temperature=0, max_tokens=12), Sampling(temperature=1.0, max_tokens=12))
    wanted = []
    for checkpoint in checkpoints:
        vllm.load(checkpoint)
        wanted.append([answers(vllm, requests, sampling) for sampling in samplings])
    vllm.close()  # a process has one group of devices
    if how == "own process":
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    options = EngineOptions(
        320,
        dtype="float32",
        kv_cache_gib=0.125,
        batch_size=8,
        data_parallel=2 if how == "data" else 1,
    )
    with open_engine("vllm", options) as engine:
        for checkpoint, expected in zip(checkpoints, wanted, strict=True):
            engine.load(checkpoint)
            assert [answers(engine, requests, sampling) for sampling in samplings] == expected
            generations = engine.generate(requests, samplings[0], stop_ids=[1])
            next(generations)
            generations.close()
