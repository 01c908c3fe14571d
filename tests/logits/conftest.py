"""Pairs of tiny models, vLLM in this process, and the two-model loop that engines are held against."""

import pytest
import torch

from ckptlin.logits import register_pairs


@pytest.fixture(autouse=True, scope="session")
def pairs_are_known():
    register_pairs()


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    # Set before vLLM starts: on a CPU its packed weights depend on the number of threads, and a reload after
    # that was changed mixes two ways of packing.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
