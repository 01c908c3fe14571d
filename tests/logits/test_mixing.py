"""The formula, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.logits.mixing import mix_logits


@given(
    st.lists(st.tuples(st.floats(-50, 50, width=32), st.floats(-50, 50, width=32)), min_size=1, max_size=30),
    st.floats(-3, 5),
)
def test_it_is_the_formula_up_to_the_rounding_of_float32(logits, alpha):
    first, last = np.array(logits, np.float64).T
    mixed = mix_logits(torch.tensor(first, dtype=torch.float32), torch.tensor(last, dtype=torch.float32), alpha)
    assert mixed.dtype == torch.float32
    size = np.abs(first) + np.abs(last)
    np.testing.assert_array_less(
        np.abs(mixed.numpy() - (first + alpha * (last - first))), 4e-7 * (1 + abs(alpha)) * size + 1e-30
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ends_are_exact_and_the_result_is_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.randn(5, 1000, generator=generator).to(dtype) * 30 for _ in range(2))
    kept = first.clone(), last.clone()
    assert torch.equal(mix_logits(first, last, 0.0), first.float())
    assert torch.equal(mix_logits(first, last, 1.0), last.float())
    assert mix_logits(first, last, 1.7).dtype == torch.float32
    assert torch.equal(first, kept[0])
    assert torch.equal(last, kept[1])
