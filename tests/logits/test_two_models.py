"""Logits extrapolation in transformers: against two whole forwards, and against either model alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from ckptlin.errors import CkptlinError, InputError
from ckptlin.logits import make_pair, write_pair
from ckptlin.logits.two_models import LogitsExtrapolationForCausalLM, PairCache
from tests.logits.checkpoints import FAMILIES, VOCABULARY, save_checkpoints
from tests.logits.loop import TwoModels, make_prompts

NUM_TOKENS = 32


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoints(request, tmp_path_factory) -> tuple[Path, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("run"), request.param)


def load(checkpoints, directory, **options):
    pair = write_pair(
        make_pair(*checkpoints, alpha=options.pop("alpha", 1.7)), directory / "pair", overwrite=True
    )
    return AutoModelForCausalLM.from_pretrained(pair, **options)


def padded(prompts):
    """Pad on the left, as for ``generate``."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def generate(model, prompts, **options):
    ids, mask = padded(prompts)
    # generate takes the model's own end where it is given none.
    model.generation_config.eos_token_id = options.get("eos_token_id")
    settings = {"max_new_tokens": NUM_TOKENS, "pad_token_id": 0} | options
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=mask, generation_config=GenerationConfig(**settings))
    return [row[ids.shape[1] :].tolist() for row in written]


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.0, 1.7])
def test_greedy_tokens_are_those_of_two_whole_forwards(checkpoints, alpha, tmp_path):
    prompts = make_prompts(16)
    model = load(checkpoints, tmp_path, alpha=alpha)
    assert isinstance(model, LogitsExtrapolationForCausalLM)
    loop = TwoModels(*checkpoints)
    written = generate(model, prompts, do_sample=False)
    assert {len(row) for row in written} == {NUM_TOKENS}
    assert written == [loop.greedy(prompt, row, alpha) for prompt, row in zip(prompts, written, strict=True)]
    # A witness that cannot fail would show nothing: another α writes something else.
    assert written != [
        loop.greedy(prompt, row, alpha + 1) for prompt, row in zip(prompts, written, strict=True)
    ]


@pytest.mark.parametrize("row", [0, 1])
def test_either_end_is_one_model_whatever_the_sampler(checkpoints, row, tmp_path):
    prompts = make_prompts(6)
    alone = AutoModelForCausalLM.from_pretrained(checkpoints[row])
    pair = load(checkpoints, tmp_path, alpha=float(row))
    sampler = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "num_return_sequences": 3}
    written = []
    for model in (alone, pair):
        torch.manual_seed(7)
        written.append(generate(model, prompts, **sampler))
    assert written[0] == written[1]
    assert len({tuple(row) for row in written[0]}) > 6, "samples of one prompt differ"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> tuple[Path, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("run"))


def test_logits_with_and_without_caches_agree_with_float64(qwen, tmp_path):
    model = load(qwen, tmp_path)
    loop = TwoModels(*qwen)
    ids = make_prompts(9)[-1] * 3
    with torch.inference_mode():
        whole = model(torch.tensor([ids]), use_cache=False)
        first = model(torch.tensor([ids[:10]]), use_cache=True)
        rest = model(torch.tensor([ids[10:]]), past_key_values=first.past_key_values)
    assert whole.past_key_values is None
    assert isinstance(rest.past_key_values, PairCache)
    assert rest.past_key_values.get_seq_length() == len(ids)
    pieces = torch.cat([first.logits, rest.logits], dim=1)
    for found in (whole.logits[0], pieces[0]):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), loop.logits(ids, 1.7), atol=1e-4, rtol=0)


def test_beams_take_both_caches_along(qwen, tmp_path):
    # Beams change rows at every token; a cache that stayed behind would answer for another beam.
    model = load(qwen, tmp_path)
    prompts = make_prompts(4)
    with_cache, without = (
        generate(model, prompts, num_beams=3, do_sample=False, max_new_tokens=12, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert with_cache == without


def test_an_end_ends_and_alpha_may_change_between_calls(qwen, tmp_path):
    model = load(qwen, tmp_path)
    prompts = make_prompts(8)
    free = generate(model, prompts, do_sample=False)
    end = free[0][3]
    ended = generate(model, prompts, do_sample=False, eos_token_id=end)
    for full, found in zip(free, ended, strict=True):
        cut = full[: full.index(end) + 1] if end in full else full
        assert found == cut + [0] * (len(found) - len(cut))
    model.alpha = -0.5
    other = generate(model, prompts, do_sample=False)
    loop = TwoModels(*qwen)
    assert other != free
    assert other == [loop.greedy(prompt, row, -0.5) for prompt, row in zip(prompts, other, strict=True)]


def test_the_generation_configuration_is_the_second_checkpoints(qwen, tmp_path):
    model = load(qwen, tmp_path)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert model.config.get_text_config().vocab_size == VOCABULARY


def test_bfloat16_logits_are_mixed_in_float32(qwen, tmp_path):
    model = load(qwen, tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    loop = TwoModels(*qwen, dtype=torch.bfloat16)
    ids = make_prompts(9)[-1]
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loop.logits(ids, 1.7), atol=1e-5, rtol=0)
    assert not torch.equal(found, found.bfloat16().float()), "rounded again"


def test_both_models_are_held_once(qwen, tmp_path):
    model = load(qwen, tmp_path)
    alone = [sum(p.numel() for p in m.parameters()) for m in TwoModels(*qwen).models]
    assert sum(p.numel() for p in model.parameters()) == sum(alone)


def test_what_makes_no_sense_is_refused(qwen, tmp_path):
    model = load(qwen, tmp_path)
    ids = torch.tensor([[3, 4]])
    with pytest.raises(InputError, match="two embeddings"):
        model(inputs_embeds=torch.zeros(1, 2, 64))
    single = DynamicCache(config=model.config.get_text_config())
    model.base(ids, past_key_values=single, use_cache=True)
    with pytest.raises(InputError, match="of one model"):
        model(ids, past_key_values=single)
    with pytest.raises(InputError, match="write_pair"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CkptlinError, match="from_pretrained"):
        AutoModelForCausalLM.from_config(model.config)
