"""How TRL is loaded: without vLLM, unless vLLM writes the rollouts."""

import importlib.util
import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings
from ckptlin.rl.trl.library import load_trl
load_trl(with_vllm=False)
import ckptlin.rl.trl.grpo
before = "vllm" in sys.modules
warnings.simplefilter("ignore")
load_trl(with_vllm=True)
from trl.generation import vllm_generation
print(before, vllm_generation.LLM.__name__)
"""


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_trl_loads_vllm_only_where_it_is_wanted():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "LLM"]
