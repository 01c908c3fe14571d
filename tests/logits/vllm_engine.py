"""vLLM in this process, on a CPU, and gone again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptlin.evaluate.engines.vllm_library import import_vllm, starting
from ckptlin.logits.vllm_plugin import WORKER_EXTENSION

__all__ = ["greedy", "open_llm", "sample"]


@contextmanager
def open_llm(model: Path, **options: Any) -> Iterator[Any]:
    """Open ``vllm.LLM`` on a model or pair; global state is put back when it is closed."""
    vllm = import_vllm()
    with starting({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):
        llm = vllm.LLM(
            model=str(model),
            **{
                "dtype": "float32",
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "skip_tokenizer_init": True,
                "generation_config": "vllm",
                "max_model_len": 64,
                "kv_cache_memory_bytes": 1 << 26,
                "worker_extension_cls": WORKER_EXTENSION,
                "use_tqdm_on_load": False,
            }
            | options,
        )
    try:
        yield llm
    finally:
        from vllm.distributed import cleanup_dist_env_and_memory

        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def sample(llm: Any, prompts: list[list[int]], **params: Any) -> list[Any]:
    """Return vLLM's answers, one a prompt."""
    from vllm import SamplingParams

    asked = SamplingParams(**{"ignore_eos": True, "detokenize": False} | params)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def greedy(llm: Any, prompts: list[list[int]], *, num_tokens: int = 32, **params: Any) -> list[list[int]]:
    """Return the likeliest tokens after each prompt."""
    answers = sample(llm, prompts, temperature=0.0, max_tokens=num_tokens, **params)
    return [list(answer.token_ids) for answer in answers]
