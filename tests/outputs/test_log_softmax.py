"""Log-probabilities in chunks are those of the whole distribution, whatever the chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.outputs.log_softmax import from_logits, token_log_probs


def expected(logits, tokens):
    """Log-probability and entropy in float64, all at once."""
    whole = torch.log_softmax(logits.double(), dim=-1)
    entropy = -(whole.exp() * whole).nan_to_num(0.0).sum(dim=-1)
    return whole.gather(1, tokens.unsqueeze(1)).squeeze(1), entropy


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    vocab=st.integers(1, 40),
    hidden=st.integers(1, 8),
    block=st.tuples(st.integers(1, 10), st.integers(1, 41)),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chunks_make_no_difference(rows, vocab, hidden, block, scale, with_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(rows, hidden, generator=generator)
    weight = torch.randn(vocab, hidden, generator=generator)
    bias = torch.randn(vocab, generator=generator) if with_bias else None
    tokens = torch.randint(0, vocab, (rows,), generator=generator)
    found, entropy = token_log_probs(states, tokens, weight, bias, with_entropy=True, block=block)
    logits = states.double() @ weight.double().t() + (0 if bias is None else bias.double())
    log_probs, of_entropy = expected(logits, tokens)
    tolerance = 4e-6 * max(1.0, float(logits.abs().max()))
    assert found.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(found.double(), log_probs, atol=tolerance, rtol=0)
    torch.testing.assert_close(entropy.double(), of_entropy, atol=tolerance, rtol=0)
    assert (found <= 0).all()
    assert (entropy >= 0).all()


def test_16_bit_logits_are_not_rounded():
    generator = torch.Generator().manual_seed(0)
    states = (4 * torch.randn(64, 32, generator=generator)).bfloat16()
    weight = torch.randn(500, 32, generator=generator).bfloat16()
    tokens = torch.randint(0, 500, (64,), generator=generator)
    found, _ = token_log_probs(states, tokens, weight)
    log_probs, _ = expected(states.double() @ weight.double().t(), tokens)
    assert (found.double() - log_probs).abs().max() < 1e-4
    rounded, _ = expected((states @ weight.t()).float(), tokens)
    assert (rounded - log_probs).abs().max() > 1e-2, "rounding would have been seen"


def test_tokens_that_are_masked_out_add_nothing():
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    found, entropy = from_logits(logits, torch.tensor([2]), with_entropy=True)
    log_probs, of_entropy = expected(logits, torch.tensor([2]))
    torch.testing.assert_close(found.double(), log_probs)
    torch.testing.assert_close(entropy.double(), of_entropy)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_logits_of_a_models_own_are_left_as_they_were(with_entropy):
    logits = torch.randn(5, 20_000)
    before = logits.clone()
    tokens = torch.arange(5)
    found, entropy = from_logits(logits, tokens, with_entropy=with_entropy)
    torch.testing.assert_close(found.double(), expected(before, tokens)[0], atol=1e-5, rtol=0)
    assert torch.equal(logits, before)
    assert (entropy is None) != with_entropy
