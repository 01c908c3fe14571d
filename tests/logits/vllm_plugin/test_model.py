"""A pair in vLLM: against two models in float64, and what it takes of memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from ckptlin.evaluate.engines.vllm_worker import WholeReload
from ckptlin.logits import make_pair, write_pair
from tests.logits.checkpoints import save_checkpoints, save_model
from tests.logits.loop import TwoModels, make_prompts
from tests.logits.vllm_engine import greedy, open_llm, sample

pytest.importorskip("vllm", reason="vLLM is not installed")

ALPHAS = (-0.5, 0.0, 1.0, 1.7)
slow = pytest.mark.slow


def written_as_expected(llm, loop, alpha, *, num_prompts=16) -> bool:
    prompts = make_prompts(num_prompts)
    written = greedy(llm, prompts)
    assert {len(row) for row in written} == {32}
    return written == [loop.greedy(prompt, row, alpha) for prompt, row in zip(prompts, written, strict=True)]


def the_model(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


@pytest.mark.parametrize(
    "family",
    [
        "qwen2-untied",
        "qwen3-tied",
        pytest.param("qwen3-untied", marks=slow),
        pytest.param("qwen2-tied", marks=slow),
        pytest.param("llama-untied", marks=slow),
        pytest.param("llama-tied", marks=slow),
    ],
)
def test_tokens_and_log_probs_are_those_of_two_models_and_alpha_changes_at_run_time(family, tmp_path):
    checkpoints = save_checkpoints(tmp_path, family)
    directory = write_pair(make_pair(*checkpoints, alpha=ALPHAS[0]), tmp_path / "pair")
    loop = TwoModels(*checkpoints)
    prompts = make_prompts(16)
    with open_llm(directory) as llm:
        assert llm.collective_rpc("get_logits_alpha") == [ALPHAS[0]]
        for alpha in ALPHAS:
            llm.collective_rpc("set_logits_alpha", args=(alpha,))
            assert written_as_expected(llm, loop, alpha), f"alpha {alpha}"
            assert not written_as_expected(llm, loop, alpha + 1), "another α writes something else"
            answers = sample(llm, prompts, temperature=0.0, max_tokens=8, logprobs=5)
            for prompt, answer in zip(prompts, answers, strict=True):
                expected = loop.log_probs([*prompt, *answer.token_ids], alpha)[len(prompt) - 1 : -1]
                for row, found in zip(expected, answer.logprobs, strict=True):
                    assert len(found) >= 5
                    for token, entry in found.items():
                        assert entry.logprob == pytest.approx(float(row[token]), abs=2e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    for row, step in enumerate((10, 20, 30)):
        save_model(root / f"checkpoint-{step}", "qwen2-tied", moved=row)
    return root


@pytest.fixture(scope="module")
def pair(run) -> Path:
    return write_pair(make_pair(run / "checkpoint-10", run / "checkpoint-20", target=27), run / "pair")


@pytest.fixture(scope="module")
def llm(pair):
    with open_llm(
        pair, max_model_len=128, max_num_seqs=64, worker_extension_cls=f"{WholeReload.__module__}.WholeReload"
    ) as opened:
        yield opened


def test_another_pair_goes_into_the_engine_that_runs(run, pair, llm, tmp_path):
    before, after = ((run / f"checkpoint-{a}", run / f"checkpoint-{b}") for a, b in ((10, 20), (20, 30)))
    assert written_as_expected(llm, TwoModels(*before), 1.7)
    # Prompts that the engine has kept keys and values of must not be answered with them.
    other = write_pair(make_pair(*after, target=35), tmp_path / "other")
    llm.collective_rpc("reload_whole", args=(str(other),))
    assert llm.reset_prefix_cache()
    assert the_model(llm).alpha == 1.5
    assert written_as_expected(llm, TwoModels(*after), 1.5)
    assert not written_as_expected(llm, TwoModels(*before), 1.7)
    llm.collective_rpc("reload_whole", args=(str(pair),))
    assert llm.reset_prefix_cache()
    assert written_as_expected(llm, TwoModels(*before), 1.7)


def test_prompts_are_scored_by_mixed_logits_too(run, llm):
    from vllm import SamplingParams

    loop = TwoModels(run / "checkpoint-10", run / "checkpoint-20")
    prompt = make_prompts(9)[-1] * 4
    (output,) = llm.generate(
        [{"prompt_token_ids": prompt}],
        SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False),
        use_tqdm=False,
    )
    expected = loop.log_probs(prompt, 1.7)
    for row, entries in enumerate(output.prompt_logprobs[1:]):
        assert entries[prompt[row + 1]].logprob == pytest.approx(
            float(expected[row, prompt[row + 1]]), abs=2e-5
        )


def test_what_is_sampled_has_the_distribution_of_mixed_logits(run, llm):
    # Two tokens at temperature 0.6; the chance that this fails though all is right is 1 in 1000 each.
    prompt, num_samples = make_prompts(3)[-1], 4000
    answers = sample(llm, [prompt] * num_samples, temperature=0.6, max_tokens=2)
    loop = TwoModels(run / "checkpoint-10", run / "checkpoint-20")
    first = loop.log_probs(prompt, 1.7, temperature=0.6)[-1].exp()
    firsts = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=len(first))
    assert chi_square(firsts, first) > 1e-3
    likeliest = int(first.argmax())
    second = loop.log_probs([*prompt, likeliest], 1.7, temperature=0.6)[-1].exp()
    seconds = torch.tensor([a.token_ids[1] for a in answers if a.token_ids[0] == likeliest])
    assert len(seconds) > 200
    assert chi_square(torch.bincount(seconds, minlength=len(second)), second) > 1e-3
    # And it tells a neighbouring α apart.
    assert chi_square(firsts, loop.log_probs(prompt, 1.0, temperature=0.6)[-1].exp()) < 1e-6


def chi_square(counts, probabilities) -> float:
    """Return the p-value; tokens that are expected fewer than 5 times count together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = [*counts[~rare].tolist(), int(counts[rare].sum())]
    wanted = [*expected[~rare].tolist(), float(expected[rare].sum())]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    return float(chisquare(observed, wanted).pvalue)


def test_seeds_give_the_same_answers_in_any_batch(llm):
    prompts = make_prompts(8)
    together = [list(a.token_ids) for a in sample(llm, prompts, temperature=1.0, max_tokens=8, seed=3)]
    alone = [list(sample(llm, [p], temperature=1.0, max_tokens=8, seed=3)[0].token_ids) for p in prompts]
    assert together == alone


def test_keys_and_values_of_both_are_counted_and_weights_are_twice(run, llm):
    config = llm.llm_engine.vllm_config
    blocks = config.cache_config.num_gpu_blocks
    weights = sum(p.numel() for p in the_model(llm).parameters())
    cache = sum(
        t.numel() * t.element_size()
        for t in llm.llm_engine.model_executor.driver_worker.worker.model_runner.kv_caches
    )
    assert cache <= 1 << 26
    with open_llm(run / "checkpoint-10", max_model_len=128, max_num_seqs=64) as single:
        assert weights == 2 * sum(p.numel() for p in the_model(single).parameters())
        assert abs(single.llm_engine.vllm_config.cache_config.num_gpu_blocks - 2 * blocks) <= 1


@slow
def test_long_contexts_and_preemption_leave_tokens_as_they_are(tmp_path):
    # Few blocks for many long sequences: some are put off and computed anew, and chunks of a prompt wait.
    checkpoints = save_checkpoints(tmp_path, max_position_embeddings=4096)
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    loop = TwoModels(*checkpoints)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 48, (400,), generator=generator).tolist() for _ in range(6)]
    with open_llm(
        directory, max_model_len=1024, kv_cache_memory_bytes=1 << 21, enable_chunked_prefill=True,
        max_num_batched_tokens=128, max_num_seqs=6, enable_prefix_caching=False,
    ) as llm:  # fmt: skip
        blocks = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
        size = llm.llm_engine.vllm_config.cache_config.block_size
        assert blocks * size < 6 * 600, "else nothing is put off"
        written = greedy(llm, prompts, num_tokens=200)
    assert written == [loop.greedy(prompt, row, 1.7) for prompt, row in zip(prompts, written, strict=True)]


@slow
def test_bfloat16_follows_two_models_in_bfloat16(tmp_path):
    checkpoints = save_checkpoints(tmp_path, dtype=torch.bfloat16)
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    exact = TwoModels(*checkpoints)
    with open_llm(directory, dtype="bfloat16") as llm:
        assert next(the_model(llm).parameters()).dtype == torch.bfloat16
        prompts = make_prompts(16)
        answers = sample(llm, prompts, temperature=0.0, max_tokens=8, logprobs=5)
    errors = []
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = exact.log_probs([*prompt, *answer.token_ids], 1.7)[len(prompt) - 1 : -1]
        errors += [
            abs(entry.logprob - float(row[token]))
            for row, found in zip(expected, answer.logprobs, strict=True)
            for token, entry in found.items()
        ]
    # The unit in the last place of a logit of 8 to 16 is 1/16, and α = 1.7 multiplies it.
    assert sorted(errors)[len(errors) // 2] < 0.1
    assert max(errors) < 1.0


@slow
def test_two_processes_share_a_pair(tmp_path):
    checkpoints = save_checkpoints(tmp_path, num_key_value_heads=2)
    directory = write_pair(make_pair(*checkpoints, target=27), tmp_path / "pair")
    program = Path(__file__).parent / "shared_pair.py"
    done = subprocess.run(
        [sys.executable, str(program), str(directory)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = [[int(t) for t in line.split()] for line in done.stdout.strip().split("\n")[-8:]]
    loop = TwoModels(*checkpoints)
    assert written == [loop.greedy(p, row, 1.7) for p, row in zip(make_prompts(8), written, strict=True)]


def test_the_entry_point_imports_no_model():
    program = (
        "import sys, vllm\n"
        "from importlib.metadata import entry_points\n"
        "(point,) = [p for p in entry_points(group='vllm.general_plugins') if p.name == 'ckptlin_logits']\n"
        "point.load()()\n"
        "point.load()()\n"  # vLLM may call it again
        "print(sorted(m for m in sys.modules if 'two_models' in m or 'vllm_plugin.model' in m))\n"
        "from vllm import ModelRegistry\n"
        "print('CkptlinLogitsExtrapolationForCausalLM' in ModelRegistry.get_supported_archs())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().split("\n")[-2:] == ["[]", "True"], done.stderr[-2000:]
