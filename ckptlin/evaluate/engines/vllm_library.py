"""vLLM as a library: what surrounds its import and the start of an engine, so that the process stays as it was.

Set for good, before the first import and where the user has not set it: messages of level ``ERROR`` and worse,
to stderr (``VLLM_LOGGING_LEVEL``, ``VLLM_LOGGING_STREAM``; vLLM's own default is stdout, which belongs to
data), and no usage statistics (``VLLM_NO_USAGE_STATS``).  What is left behind otherwise: on a CPU vLLM binds
this process's memory to its first NUMA node, and torch says so in a line on stderr unless
``TORCH_CPP_LOG_LEVEL=ERROR`` stood in the environment when it was loaded.
"""

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ckptlin.evaluate.engines.model import ModelFacts

__all__ = ["device_name", "import_vllm", "is_on_cpu", "start_arguments", "starting", "supported_head_sizes"]

_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


def import_vllm() -> Any:
    """Import vLLM, and say nothing about it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "vllm" not in sys.modules:
        # Some of it speaks while it is imported, before it has set its own messages up.
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm

        _tolerate_other_libraries()
    return vllm


def is_on_cpu() -> bool:
    """Tell whether this vLLM computes on a CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def device_name() -> str:
    """Return the name of what this vLLM computes on."""
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def start_arguments(
    facts: ModelFacts, *, max_model_len: int, tensor_parallel: int, gpu_memory: float
) -> dict[str, Any]:
    """Return the arguments that every start of an engine has.

    Parameters
    ----------
    facts : ModelFacts
    max_model_len : int
        Of a prompt with its answer, in tokens.
    tensor_parallel : int
        Devices that share the model.
    gpu_memory : float
        Share of a device's memory.
    """
    arguments: dict[str, Any] = {
        "model": facts.source,
        "dtype": facts.dtype,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel,
        "gpu_memory_utilization": gpu_memory,
        "skip_tokenizer_init": True,
        # Not the sampling that the checkpoint recommends: who asks says all.
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if is_on_cpu():
        # A request's seed crashes vLLM 0.32.0 there with chunked prefill; and weights are reloaded whole.
        arguments |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "worker_extension_cls": "ckptlin.evaluate.engines.vllm_worker.WholeReload",
        }
    return arguments


@contextmanager
def starting(environment: Mapping[str, str | None]) -> Iterator[None]:
    """Start an engine of vLLM in this block: warnings are held back, and global state is put back afterwards.

    vLLM seeds Python's, numpy's and torch's random numbers, and on a CPU replaces ``torch.set_num_threads``.

    Parameters
    ----------
    environment : mapping of str to str or None
        Variables for the start alone; None for one that must not be there.
    """
    import torch

    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(setattr, torch, "set_num_threads", torch.set_num_threads)
        stack.enter_context(_variables(environment))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def supported_head_sizes() -> tuple[int, ...]:
    """Return the sizes of an attention head that vLLM has kernels for on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return tuple(CPUAttentionBackend.get_supported_head_sizes())


@contextmanager
def _variables(environment: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    try:
        _set(environment)
        yield
    finally:
        _set(before)


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _tolerate_other_libraries() -> None:
    """Let vLLM's CPU build start in a process that has imported numba.

    Without a Triton for CPUs, vLLM 0.32.0 looks through the attributes of all modules for kernels to replace,
    and takes ``vars(value)`` to be a dict; llvmlite's handle of its library answers to any name, this one too.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:  # other versions
        return

    def names_of(value: Any) -> dict[str, Any]:
        found = vars(value)
        return found if isinstance(found, dict) else {}

    dispatcher.vars = names_of
