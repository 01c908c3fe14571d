"""The engine of transformers: runs wherever torch does, any model that transformers knows, and slowly."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptlin.errors import CkptlinError, InputError
from ckptlin.evaluate.engines.engine import EngineOptions, Generation, Request
from ckptlin.evaluate.engines.model import ModelFacts, first_line, read_model
from ckptlin.evaluate.engines.requests import check_requests
from ckptlin.evaluate.engines.torch_device import describe_device, free_memory, open_device
from ckptlin.evaluate.sampling import Sampling
from ckptlin.quiet import quiet_transformers

__all__ = ["HfEngine"]

# Answers that are generated at once: at most so many, and so many tokens, whose keys and values fill memory.
_MOST_ROWS, _MOST_TOKENS = 256, 1 << 18
_DEFAULTS = EngineOptions(1)
_OF_VLLM = ("tensor_parallel", "data_parallel", "gpu_memory", "kv_cache_gib")


class HfEngine:
    """Generates by ``generate`` of transformers; a context manager.

    Parameters
    ----------
    options : EngineOptions

    Raises
    ------
    InputError
        If an option is one of another engine, or there is no such device.
    """

    name = "hf"

    def __init__(self, options: EngineOptions) -> None:
        for name in _OF_VLLM:
            if getattr(options, name) != getattr(_DEFAULTS, name):
                raise InputError(f"option {name}={getattr(options, name)} is one of engine vllm, not of hf")
        self._options = options
        self._device = open_device(options.device)
        self._facts: ModelFacts | None = None
        self._model: Any = None

    def load(self, model: str | Path) -> None:
        """Load a model, in the place of the one before it; see `ckptlin.evaluate.engines.Engine`."""
        facts = read_model(model, dtype=self._options.dtype, max_model_len=self._options.max_model_len)
        self.close()  # there may be no room for two
        self._model = _load(facts).to(self._device).eval()
        self._facts = facts

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, stop_ids: Sequence[int]
    ) -> Iterator[list[Generation]]:
        """Generate an answer to each request, in batches of prompts of like length; yield each batch.

        See `ckptlin.evaluate.engines.Engine`.
        """
        if self._facts is None:
            raise CkptlinError("engine hf has no model: none was loaded, or the last could not be")
        check_requests(
            requests,
            sampling,
            stop_ids=stop_ids,
            max_model_len=self._options.max_model_len,
            vocab_size=self._facts.vocab_size,
        )
        return self._generate(requests, sampling, stop_ids, self._facts)

    def describe(self) -> dict[str, Any]:
        """Return what results depend on: versions, device, dtype, options."""
        return {
            "engine": self.name,
            "transformers": importlib.metadata.version("transformers"),
            "torch": importlib.metadata.version("torch"),
            "device": describe_device(self._device),
            "dtype": self._options.dtype
            if self._model is None
            else str(self._model.dtype).removeprefix("torch."),
            "max_model_len": self._options.max_model_len,
            "batch_size": self._options.batch_size,
        }

    def close(self) -> None:
        """Give the memory back; `load` may follow."""
        self._model = self._facts = None
        free_memory(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int], facts: ModelFacts
    ) -> Iterator[list[Generation]]:
        import torch

        # Longest first: what does not fit into memory shows at once.
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt_ids))
        rows = self._options.batch_size or max(1, min(_MOST_ROWS, _MOST_TOKENS // self._options.max_model_len))
        for start in range(0, len(order), rows):
            if self._facts is not facts:
                raise CkptlinError("the model was replaced or closed before these answers were generated")
            batch = order[start : start + rows]
            try:
                written = self._batch([requests[index] for index in batch], sampling, stop_ids)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{len(batch)} answers at once do not fit into the memory of {self._device}; give a "
                    f"batch_size below {len(batch)}"
                ) from error
            yield [_generation(index, row, stop_ids) for index, row in zip(batch, written, strict=True)]

    def _batch(
        self, requests: Sequence[Request], sampling: Sampling, stop_ids: Sequence[int]
    ) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        from ckptlin.evaluate.engines.draw import Draw

        width = max(len(request.prompt_ids) for request in requests)
        filler = stop_ids[0] if stop_ids else 0
        ids = torch.full((len(requests), width), filler)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, width - len(request.prompt_ids) :] = 1
        draw = []
        if not sampling.is_greedy:
            seeds = [request.seed for request in requests]
            draw = [Draw(sampling, seeds, stop_ids=stop_ids, device=self._device)]
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=filler,
        )
        with torch.inference_mode(), quiet_transformers():
            written = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=config,
                logits_processor=LogitsProcessorList(draw),
            )
        rows: list[list[int]] = written[:, width:].tolist()
        return rows


def _load(facts: ModelFacts) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                facts.source, dtype=facts.dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"transformers cannot run model {facts.source}: {first_line(error)}") from error
    # transformers would go on with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"model {facts.source} lacks {len(missing)} of the tensors that a {facts.config.model_type} has, "
            f"`{missing[0]}` among them"
        )
    # Not the sampling that the checkpoint recommends: Sampling says all.
    model.generation_config = GenerationConfig()
    return model


def _generation(index: int, row: list[int], stop_ids: Sequence[int]) -> Generation:
    end = next((place for place, token in enumerate(row) if token in stop_ids), None)
    return Generation(index, tuple(row if end is None else row[: end + 1]), end is not None)
