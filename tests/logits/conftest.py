"""Pairs of tiny models, vLLM in this process, and the two-model loop that engines are held against."""

import pytest

from ckptlin.logits import register_pairs


@pytest.fixture(autouse=True, scope="session")
def pairs_are_known():
    register_pairs()
