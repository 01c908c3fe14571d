"""The engine of vLLM, on GPUs and, by its CPU build, on a CPU; one engine for many checkpoints.

On a CPU one copy of a model runs in this process, with what vLLM needs there: no chunked prefill, since a seed
of a request with it crashes vLLM 0.32.0, and no compilation.  On a GPU vLLM runs in a process of its own, as it
does by default, so that its end gives the memory back.
"""

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptlin.errors import CkptlinError, InputError
from ckptlin.evaluate.engines.engine import EngineOptions, Generation, Request
from ckptlin.evaluate.engines.model import ModelFacts, first_line, read_model
from ckptlin.evaluate.engines.requests import check_requests
from ckptlin.evaluate.engines.vllm_cores import Ask, Core, ParallelCore, SingleCore
from ckptlin.evaluate.engines.vllm_library import (
    device_name,
    import_vllm,
    is_on_cpu,
    start_arguments,
    starting,
    supported_head_sizes,
)
from ckptlin.evaluate.sampling import Sampling

__all__ = ["VllmEngine"]

_CPU_KV_CACHE_GIB = 1.0
_GIB = 1 << 30
# vLLM raises these, or what inherits from them, where it cannot run a model.
_REFUSALS = (ValueError, OSError, RuntimeError, KeyError, AssertionError)


class VllmEngine:
    """Generates by vLLM; a context manager.

    Parameters
    ----------
    options : EngineOptions

    Raises
    ------
    InputError
        If an option is one of another engine.
    """

    name = "vllm"

    def __init__(self, options: EngineOptions) -> None:
        if options.device is not None:
            raise InputError(
                f"option device={options.device!r} is one of engine hf; vllm takes the devices that it was "
                "built for, and CUDA_VISIBLE_DEVICES says which of them"
            )
        self._options = options
        self._core: Core | None = None
        self._model: ModelFacts | None = None
        self._dtype: str | None = None
        self._is_busy = False

    def load(self, model: str | Path) -> None:
        """Load a model, in the place of the one before it; see `ckptlin.evaluate.engines.Engine`.

        A directory with the same configuration and tensors goes into the engine that runs already.
        """
        if self._is_busy:
            raise CkptlinError(
                "engine vllm generates; take or close those answers before another model is loaded"
            )
        facts = read_model(model, dtype=self._options.dtype, max_model_len=self._options.max_model_len)
        before, self._model = self._model, None
        if before is not None and (lost := before.lacks(facts)):
            # vLLM 0.32.0 starts without a part of a fused tensor, and says nothing.
            self.close()
            raise InputError(
                f"model {facts.source} lacks {len(lost)} of the tensors that {before.source} of the same "
                f"architecture has, `{lost[0]}` among them"
            )
        if self._core is not None and before is not None and before.fits(facts):
            self._reload(self._core, facts)
        else:
            self.close()
            self._core = self._start(facts)
        self._model = facts

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, stop_ids: Sequence[int]
    ) -> Iterator[list[Generation]]:
        """Generate an answer to each request; see `ckptlin.evaluate.engines.Engine`."""
        if self._model is None:
            raise CkptlinError("engine vllm has no model: none was loaded, or the last could not be")
        check_requests(
            requests,
            sampling,
            stop_ids=stop_ids,
            max_model_len=self._options.max_model_len,
            vocab_size=self._model.vocab_size,
        )
        return self._generate(requests, sampling, stop_ids, self._model)

    def describe(self) -> dict[str, Any]:
        """Return what results depend on: versions, device, dtype, options."""
        vllm = import_vllm()
        return {
            "engine": self.name,
            "vllm": vllm.__version__,
            "torch": importlib.metadata.version("torch"),
            "device": device_name(),
            "dtype": self._dtype or self._options.dtype,
            "max_model_len": self._options.max_model_len,
            "tensor_parallel": self._options.tensor_parallel,
            "data_parallel": self._options.data_parallel,
            "batch_size": self._options.batch_size,
        }

    def close(self) -> None:
        """Give memory and processes back; `load` may follow."""
        core, self._core, self._model = self._core, None, None
        if core is not None:
            core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int], model: ModelFacts
    ) -> Iterator[list[Generation]]:
        if not requests:
            return
        if self._model is not model:
            raise CkptlinError("the model was replaced or closed before these answers were generated")
        if self._is_busy:
            raise CkptlinError("engine vllm generates already; take or close those answers first")
        if self._core is None:  # a generation before this one broke off inside vLLM
            self._core = self._start(model)
        with self._busy(), closing(self._core.run(_asks(requests, sampling, stop_ids))) as outcomes:
            while True:
                try:
                    ended = next(outcomes, None)
                except BaseException:
                    # Inside a step vLLM's own books may be half written.  The next use starts it anew.
                    broken, self._core = self._core, None
                    broken.close()
                    raise
                if ended is None:
                    return
                yield [Generation(int(name), token_ids, finished) for name, token_ids, finished in ended]

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def _reload(self, core: Core, facts: ModelFacts) -> None:
        try:
            core.reload(facts.source)
        except BaseException as error:
            # Some of the weights may be the new ones already.
            self.close()
            if isinstance(error, _REFUSALS):
                raise _refused(facts, error) from error
            raise

    def _start(self, facts: ModelFacts) -> Core:
        vllm = import_vllm()
        on_cpu = is_on_cpu()
        if on_cpu:
            _check_cpu(facts)
        options = self._options
        arguments = start_arguments(
            facts,
            max_model_len=options.max_model_len,
            tensor_parallel=options.tensor_parallel,
            gpu_memory=options.gpu_memory,
        )
        environment: dict[str, str | None] = {}
        gib = options.kv_cache_gib
        if on_cpu:
            if gib is not None:
                environment["VLLM_CPU_KVCACHE_SPACE"] = None  # vLLM would take it for the last word
            elif "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                gib = _CPU_KV_CACHE_GIB
            if "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ and options.data_parallel == 1:
                environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if gib is not None:
            arguments["kv_cache_memory_bytes"] = int(gib * _GIB)
        if options.batch_size is not None:
            arguments["max_num_seqs"] = options.batch_size
        if options.data_parallel > 1:
            arguments["data_parallel_size"] = options.data_parallel
        try:
            with starting(environment):
                core = (ParallelCore if options.data_parallel > 1 else SingleCore)(**arguments)
        except _REFUSALS as error:
            raise _refused(facts, error, version=vllm.__version__) from error
        self._dtype = core.dtype
        return core


def _asks(requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]) -> Iterator[Ask]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for index, request in enumerate(requests):
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=1.0 if sampling.is_greedy else sampling.top_p,
            top_k=0 if sampling.is_greedy else sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=None if sampling.is_greedy else request.seed,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # it is one of stop_ids, or not meant to stop
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        yield str(index), list(request.prompt_ids), params


def _check_cpu(facts: ModelFacts) -> None:
    text = facts.config.get_text_config()
    size = getattr(text, "head_dim", None)
    if size is None and getattr(text, "num_attention_heads", None):
        size = text.hidden_size // text.num_attention_heads
    sizes = supported_head_sizes()
    if size is not None and size not in sizes:
        raise InputError(
            f"model {facts.source} has attention heads of size {size}, and vllm computes sizes "
            f"{', '.join(map(str, sizes))} alone on a CPU; choose --engine hf"
        )


def _refused(facts: ModelFacts, error: BaseException, *, version: str | None = None) -> InputError:
    name = "vllm" if version is None else f"vllm {version}"
    return InputError(
        f"{name} cannot run model {facts.source}: {first_line(error)}; --engine hf may be able to"
    )
