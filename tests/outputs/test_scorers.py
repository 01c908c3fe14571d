"""Both engines against a float64 log-softmax of the whole model, one sequence at a time."""

import numpy as np
import pytest
import torch
import transformers

from ckptlin.errors import InputError
from ckptlin.outputs.scorers import Probe, ScorerOptions, hf, open_scorer
from ckptlin.outputs.step_weights import WeightReader, prefetched, sidecar_directory
from ckptlin.source import open_source

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# Architecture, options, and whether its logits are its head times its hidden states.
MODELS = {
    "tied": ("Qwen2", {"tie_word_embeddings": True}, True),
    "own head": ("Llama", {"tie_word_embeddings": False}, True),
    "bias": ("GPTJ", {"rotary_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 2}, True),
    "soft cap, sliding window": (
        "Gemma2",
        {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 8},
        False,
    ),
    "scaled": ("Granite", {"logits_scaling": 4.0}, False),
    "experts, which transformers fuses": ("Mixtral", {"num_local_experts": 4}, True),
}


def make_model(name, seed=0):
    architecture, options, _ = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **options})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform
    return model


def some_probes(vocab_size=97):
    rng = np.random.default_rng(0)
    return [
        Probe(rng.integers(0, vocab_size, p).astype(np.int32), rng.integers(0, vocab_size, n).astype(np.int32))
        for p, n in [(1, 1), (3, 20), (5, 7), (9, 30), (2, 1)]
    ]


def oracle(model, probe):
    """Log-probabilities and entropies of a response, float64 as far as the model can."""
    ids = torch.from_numpy(np.concatenate([probe.prompt_ids, probe.token_ids]).astype(np.int64))[None]
    with torch.no_grad():
        whole = torch.log_softmax(model(ids).logits.double(), dim=-1)[0]
    first = len(probe.prompt_ids) - 1
    rows = whole[first : first + len(probe.token_ids)]
    return rows.gather(1, torch.from_numpy(probe.token_ids.astype(np.int64))[:, None])[:, 0].numpy(), (
        -(rows.exp() * rows).sum(dim=-1).numpy()
    )


def scored(scorer, probes, **options):
    return {found.index: found for batch in scorer.score(probes, **options) for found in batch}


def save_steps(name, directory):
    models = [make_model(name, seed) for seed in (0, 1)]
    for step, model in enumerate(models):
        model.save_pretrained(directory / f"checkpoint-{step}")
    return models


@pytest.mark.parametrize("own_logits", [1 << 26, 97 * 5 * 3], ids=["at once", "three positions at a time"])
@pytest.mark.parametrize("name", MODELS)
def test_each_step_is_scored_as_the_whole_model_would(name, own_logits, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "_OWN_LOGITS", own_logits)
    models, probes = save_steps(name, tmp_path), some_probes()
    source = open_source(tmp_path)
    options = ScorerOptions(64, "float32", batch_tokens=200, device="cpu")
    with (
        sidecar_directory(source, 0) as place,
        open_scorer("hf", options) as scorer,
        prefetched(WeightReader(source), (0, 1), lambda num_bytes: None) as steps,
    ):
        for weights, model in zip(steps, models, strict=True):
            scorer.load(weights, place)
            assert ("chunks" in scorer.describe()["head"]) == MODELS[name][2]
            found = scored(scorer, probes, with_entropy=True)
            # Fused experts have no float64 kernel.
            reference = model if name.startswith("experts") else model.double()
            for index, probe in enumerate(probes):
                log_probs, entropy = oracle(reference, probe)
                assert np.abs(found[index].log_probs - log_probs).max() < 1e-5
                assert np.abs(found[index].entropy - entropy).max() < 1e-5


@pytest.mark.parametrize("batch_tokens", [1, 30, 60, 10_000])
def test_batches_make_no_difference(batch_tokens, tmp_path):
    save_steps("tied", tmp_path)
    probes = some_probes()
    source = open_source(tmp_path)
    found = []
    for tokens in (10_000, batch_tokens):
        options = ScorerOptions(64, "float32", batch_tokens=tokens, device="cpu")
        with sidecar_directory(source, 0) as place, open_scorer("hf", options) as scorer:
            scorer.load(WeightReader(source).read(0, lambda num_bytes: None), place)
            found.append(scored(scorer, probes))
    for index in range(len(probes)):
        np.testing.assert_allclose(found[0][index].log_probs, found[1][index].log_probs, atol=2e-6)
        assert found[1][index].entropy is None


def test_batches_keep_to_their_size():
    probes = some_probes()
    for tokens in (1, 30, 60, 10_000):
        batches = list(hf.batches_by_length(probes, tokens))
        assert sorted(index for batch in batches for index in batch) == list(range(len(probes)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(probes[i].num_tokens for i in batch) <= tokens
    assert len(list(hf.batches_by_length(probes, 10_000))) == 1


def test_weights_go_into_the_model_that_is_there(tmp_path):
    save_steps("tied", tmp_path)
    source = open_source(tmp_path)
    reader = WeightReader(source)
    options = ScorerOptions(64, "float32", device="cpu")
    with sidecar_directory(source, 0) as place, open_scorer("hf", options) as scorer:
        scorer.load(reader.read(0, lambda num_bytes: None), place)
        model = scorer._model
        scorer.load(reader.read(1, lambda num_bytes: None), place)
        assert scorer._model is model
        own = model.state_dict()
        for name, tensor in reader.read(1, lambda num_bytes: None).torch_tensors().items():
            assert torch.equal(own[name], tensor)
        assert torch.equal(own["lm_head.weight"], own["model.embed_tokens.weight"])


def test_a_token_that_the_model_has_not_is_refused(tmp_path):
    save_steps("tied", tmp_path)
    source = open_source(tmp_path)
    with sidecar_directory(source, 0) as place, open_scorer("hf", ScorerOptions(64, "float32")) as scorer:
        scorer.load(WeightReader(source).read(0, lambda num_bytes: None), place)
        wrong = Probe(np.array([1], np.int32), np.array([97], np.int32))
        with pytest.raises(InputError, match="response 0 has a token outside of the model's vocabulary of 97"):
            list(scorer.score([wrong]))


def test_weights_of_another_model_are_refused(tmp_path):
    model = make_model("tied")
    del model.model.layers[1]
    model.save_pretrained(tmp_path / "checkpoint-0")
    config = transformers.Qwen2Config(**SMALL)
    config.architectures = ["Qwen2ForCausalLM"]
    config.tie_word_embeddings = True
    config.save_pretrained(tmp_path / "checkpoint-0")
    source = open_source(tmp_path)
    with (
        sidecar_directory(source, 0) as place,
        open_scorer("hf", ScorerOptions(64, "float32")) as scorer,
        pytest.raises(InputError, match="lacks 12 tensors of a Qwen2ForCausalLM"),
    ):
        scorer.load(WeightReader(source).read(0, lambda num_bytes: None), place)


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        ("magic", {}, "there is no engine 'magic'"),
        ("hf", {"tensor_parallel": 2}, "option of the engine vllm"),
        ("hf", {"device": "abacus"}, "device 'abacus' cannot be used"),
        ("hf", {"batch_tokens": 0}, "--batch-tokens is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(engine, options, expected):
    with pytest.raises(InputError, match=expected):
        open_scorer(engine, ScorerOptions(8, "float32", **options))
