"""A tiny model for the trainer's tests; TRL is imported once, without what it warns of."""

import warnings

import pytest
import torch

from ckptlin.rl.trl.library import load_trl
from tests.rl_runs import save_tiny_model


@pytest.fixture(scope="session", autouse=True)
def trl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_trl(with_vllm=False)
        import trl

        import ckptlin.rl.trl.grpo
        import ckptlin.rl.trl.sft  # noqa: F401
    return trl


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")
