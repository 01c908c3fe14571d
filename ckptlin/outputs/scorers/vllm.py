"""Log-probabilities by vLLM: its ``prompt_logprobs``, each response being part of a prompt.

vLLM multiplies by the head in the model's own dtype and takes the log-softmax in float32: in float32 the
two engines agree, in bfloat16 its logits are rounded first.  It gives no entropy.  Weights come from
directories; those of the same architecture go into the engine that runs.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.errors import CkptlinError, InputError
from ckptlin.evaluate.engines.model import ModelFacts, first_line, read_model
from ckptlin.evaluate.engines.vllm_cores import SingleCore
from ckptlin.evaluate.engines.vllm_library import (
    device_name,
    import_vllm,
    is_on_cpu,
    start_arguments,
    starting,
)
from ckptlin.outputs.scorers.scorer import Probe, Scored, ScorerOptions
from ckptlin.outputs.step_weights import StepWeights

__all__ = ["VllmScorer"]

_AT_ONCE = 256  # probes that are handed over together
_CPU_KV_CACHE_BYTES = 1 << 30
# vLLM raises these, or what inherits from them, where it cannot run a model.
_REFUSALS = (ValueError, OSError, RuntimeError, KeyError)


class VllmScorer:
    """Scores by vLLM; a context manager.

    Parameters
    ----------
    options : ScorerOptions

    Raises
    ------
    InputError
        If an option is one of another engine.
    """

    name = "vllm"
    has_entropy = False
    from_tensors = False

    def __init__(self, options: ScorerOptions) -> None:
        if options.device is not None:
            raise InputError(
                f"--device {options.device} is an option of the engine hf; vllm takes the devices that it "
                "was built "
                "for, and CUDA_VISIBLE_DEVICES says which of them"
            )
        self._options = options
        self._core: SingleCore | None = None
        self._facts: ModelFacts | None = None

    def load(self, weights: StepWeights, directory: Path) -> None:
        """Take the weights of a step; see `ckptlin.outputs.scorers.Scorer`."""
        # vLLM generates a token after every prompt, whether it is wanted or not.
        facts = read_model(directory, dtype=self._options.dtype, max_model_len=self._options.max_tokens)
        before, self._facts = self._facts, None
        try:
            if self._core is not None and before is not None and before.fits(facts):
                self._core.reload(facts.source)
            else:
                self.close()
                self._core = self._start(facts)
        except _REFUSALS as error:
            self.close()
            raise InputError(
                f"vllm cannot run the model of {weights.source}: {first_line(error)}; --engine hf may be "
                "able to"
            ) from error
        self._facts = facts

    def score(self, probes: Sequence[Probe], *, with_entropy: bool = False) -> Iterator[list[Scored]]:
        """Score every token of every response; see `ckptlin.outputs.scorers.Scorer`."""
        from vllm import SamplingParams

        if self._core is None or self._facts is None:
            raise CkptlinError("engine vllm has no model; load one first")
        if with_entropy:
            raise InputError("engine vllm gives no entropy; choose --engine hf")
        highest = max(int(max(probe.prompt_ids.max(), probe.token_ids.max())) for probe in probes)
        if highest >= self._facts.vocab_size:
            raise InputError(
                f"a response has token {highest}, which is outside of the model's vocabulary of "
                f"{self._facts.vocab_size:,}; it was written with another tokenizer"
            )
        params = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )
        # Those of one length after the other fill vLLM's steps best.
        order = iter(sorted(range(len(probes)), key=lambda index: -probes[index].num_tokens))
        while batch := list(islice(order, _AT_ONCE)):
            prompts: list[Any] = [
                {"prompt_token_ids": [*probes[i].prompt_ids.tolist(), *probes[i].token_ids.tolist()]}
                for i in batch
            ]
            outputs = self._core.llm.generate(prompts, params, use_tqdm=False)
            yield [
                Scored(index, _of_response(output.prompt_logprobs, probes[index]), None)
                for index, output in zip(batch, outputs, strict=True)
            ]

    def describe(self) -> dict[str, Any]:
        """Return what results depend on, as plain data."""
        return {
            "engine": self.name,
            "device": device_name(),
            "dtype": self._options.dtype,
            "head": "the model's own logits",
            "tensor_parallel": self._options.tensor_parallel,
        }

    def close(self) -> None:
        """Give memory and processes back; `load` may follow."""
        core, self._core, self._facts = self._core, None, None
        if core is not None:
            core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _start(self, facts: ModelFacts) -> SingleCore:
        import_vllm()
        options = self._options
        arguments = start_arguments(
            facts,
            # One more than the longest probe, for the token that vLLM generates.
            max_model_len=_with_room(facts, options.max_tokens),
            tensor_parallel=options.tensor_parallel,
            gpu_memory=options.gpu_memory,
        )
        environment: dict[str, str | None] = {}
        if is_on_cpu():
            # In this process, as the engine of the evaluator runs there.
            arguments["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
            environment = {"VLLM_CPU_KVCACHE_SPACE": None, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        with starting(environment):
            return SingleCore(**arguments)


def _with_room(facts: ModelFacts, max_tokens: int) -> int:
    text = facts.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and max_tokens >= positions:
        raise ValueError(f"a response ends at token {max_tokens} of {positions}, and vLLM needs one more")
    return max_tokens + 1


def _of_response(flat: Any, probe: Probe) -> np.ndarray[Any, Any]:
    """Take the log-probabilities of a response out of those of the whole prompt, whose first token has none."""
    found = np.array(flat.logprobs, np.float32)
    # A position has the prompt's own token first, and nothing else was asked for.
    start = np.array(flat.start_indices)[len(probe.prompt_ids) :]
    own = np.array(flat.token_ids)[start]
    if not np.array_equal(own, probe.token_ids):
        raise CkptlinError("vLLM gave log-probabilities of other tokens than it was asked for")
    own_log_probs: np.ndarray[Any, Any] = found[start]
    return own_log_probs
