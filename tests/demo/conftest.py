"""A tiny demo for the tests, from the model that comes with the package; TRL loads without what it warns of."""

import random
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("trl", reason="the demo trains by TRL, which the extra `train` has")

import torch
import transformers

from ckptlin.demo import DemoResult, DemoSettings, run_demo
from ckptlin.rl.trl.library import load_trl

# At ten times the demo's learning rate a few steps show what hundreds do.
TINY = DemoSettings(
    steps=40,
    save_every=4,
    last_seen=20,
    num_prompts=16,
    lr=1e-4,
    num_held_out=100,
    num_samples=2,
)
SEED = 3


@pytest.fixture(scope="session", autouse=True)
def trl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_trl(with_vllm=False)
        import trl

        import ckptlin.rl.trl.grpo  # noqa: F401
    return trl


class Heard:
    """Progress that remembers: phases and how far each came."""

    def __init__(self):
        self.phases = {}

    def phase(self, title, num_bytes):
        heard = self

        class Phase:
            def __enter__(self):
                done = heard.phases.setdefault(title, [])
                done.append([num_bytes, 0])

                def advance(num_bytes):
                    done[-1][1] += num_bytes

                return advance

            def __exit__(self, *_):
                pass

        return Phase()

    def note(self, message):
        pass


class Toured(NamedTuple):
    """A demo: its directory and result, what it said, its progress, and states from before and after."""

    out: Path
    result: DemoResult
    said: list[str]
    heard: Heard
    before: tuple
    after: tuple


@pytest.fixture(scope="session")
def toured(trl, tmp_path_factory) -> Toured:
    out = tmp_path_factory.mktemp("tour") / "demo"
    said, heard = [], Heard()

    def states():
        return (
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            transformers.utils.logging.get_verbosity(),
            transformers.utils.logging.is_progress_bar_enabled(),
        )

    before = states()
    result = run_demo(out, seed=SEED, settings=TINY, progress=heard, say=said.append)
    return Toured(out, result, said, heard, before, states())
