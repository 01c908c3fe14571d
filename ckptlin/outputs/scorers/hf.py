"""Log-probabilities by transformers: hidden states of the base model, then the head in chunks.

Responses of like length are padded to one another on the right, without a mask: in a causal model nothing that
is scored sees what comes behind it.  The prompt goes through the model and never through the head.

A model whose logits are more than its head times its last hidden states (a soft cap, a scale, another output
layer) is found out by trying, whenever weights are loaded; its own logits are then taken, some positions
at a time with what it keeps of those before.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ckptlin.errors import CkptlinError, InputError
from ckptlin.evaluate.engines.torch_device import describe_device, free_memory, open_device
from ckptlin.outputs.log_softmax import from_logits, token_log_probs
from ckptlin.outputs.scorers.scorer import Probe, Scored, ScorerOptions
from ckptlin.outputs.step_weights import StepWeights
from ckptlin.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

__all__ = ["HfScorer", "batches_by_length", "check_ids", "padded"]

# Logits of a model's own that are made at once: 256 MB in float32.
_OWN_LOGITS = 1 << 26
# How large the hidden states are by which a head is tried: a soft cap of 30 shows itself on logits of its size.
_TRIAL_ROWS, _TRIAL_LOGIT = 4, 50.0


class HfScorer:
    """Scores by transformers; a context manager.

    Parameters
    ----------
    options : ScorerOptions

    Raises
    ------
    InputError
        If there is no such device.
    """

    name = "hf"
    has_entropy = True
    from_tensors = True

    def __init__(self, options: ScorerOptions) -> None:
        if options.tensor_parallel != 1:
            raise InputError("--tensor-parallel is an option of the engine vllm; hf runs a model on one device")
        self._device = open_device(options.device)
        self._options = options
        self._model: Any = None
        self._base: Any = None
        self._head: Any = None

    @property
    def model(self) -> Any:
        """The model that is loaded."""
        if self._model is None:
            raise CkptlinError("engine hf has no model; load one first")
        return self._model

    @property
    def device(self) -> "torch.device":
        """That it lies on."""
        return self._device

    def load(self, weights: StepWeights, directory: Path) -> None:
        """Take the weights of a step; see `ckptlin.outputs.scorers.Scorer`.

        Tensor by tensor into the model that is there, if each has its place in it; else, as for the first and
        for checkpoints that transformers converts, a model is made of them.
        """
        import torch

        tensors = weights.torch_tensors()
        places = None if self._model is None else _places(self._model, tensors)
        if places is None:
            self.close()
            self._model = _build(weights, tensors, directory, self._options.dtype).to(self._device).eval()
        else:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    places[name].copy_(tensor)
        self._base, self._head = _divide(self._model)

    def score(self, probes: Sequence[Probe], *, with_entropy: bool = False) -> Iterator[list[Scored]]:
        """Score every token of every response; see `ckptlin.outputs.scorers.Scorer`."""
        import torch

        check_ids(probes, self.model.get_input_embeddings().num_embeddings)
        for batch in batches_by_length(probes, self._options.batch_tokens):
            with torch.inference_mode(), quiet_transformers():
                log_probs, entropy = self._score_batch([probes[index] for index in batch], with_entropy)
            ends = np.cumsum([len(probes[index].token_ids) for index in batch])[:-1]
            entropies = [None] * len(batch) if entropy is None else np.split(entropy, ends)
            yield [
                Scored(index, of_probe, of_entropy)
                for index, of_probe, of_entropy in zip(batch, np.split(log_probs, ends), entropies, strict=True)
            ]

    def describe(self) -> dict[str, Any]:
        """Return what results depend on, as plain data."""
        device = describe_device(self._device)
        head = "in chunks, float32" if self._head is not None else "the model's own logits"
        return {"engine": self.name, "device": device, "dtype": self._options.dtype, "head": head}

    def close(self) -> None:
        """Give the model's memory back; `load` may follow."""
        self._model = self._base = self._head = None
        free_memory(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _score_batch(
        self, batch: Sequence[Probe], with_entropy: bool
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        """Return log-probabilities and entropies of all responses, one behind the other."""
        import torch

        padded_ids, rows, columns = padded(batch)
        tokens = np.concatenate([probe.token_ids for probe in batch]).astype(np.int64)

        def on_device(array: np.ndarray[Any, Any]) -> "torch.Tensor":
            return torch.from_numpy(array).to(self._device)

        ids, wanted = on_device(padded_ids), on_device(tokens)
        row, column = on_device(rows), on_device(columns)
        if self._head is None:
            return self._own_logits(ids, row, column, wanted, with_entropy)
        hidden = self._base(input_ids=ids, use_cache=False).last_hidden_state[row, column]
        return _on_host(
            token_log_probs(hidden, wanted, self._head.weight, self._head.bias, with_entropy=with_entropy)
        )

    def _own_logits(
        self,
        ids: "torch.Tensor",
        row: "torch.Tensor",
        column: "torch.Tensor",
        tokens: "torch.Tensor",
        with_entropy: bool,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        import torch

        vocab_size = self._model.get_input_embeddings().num_embeddings
        at_once = max(1, _OWN_LOGITS // (len(ids) * vocab_size))
        log_probs = torch.empty(len(tokens), dtype=torch.float32, device=self._device)
        entropy = torch.empty_like(log_probs) if with_entropy else None
        cache = None
        for lo in range(0, ids.shape[1], at_once):
            output = self._model(input_ids=ids[:, lo : lo + at_once], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            here = ((column >= lo) & (column < lo + at_once)).nonzero().squeeze(1)
            found, of_entropy = from_logits(
                output.logits[row[here], column[here] - lo], tokens[here], with_entropy=with_entropy
            )
            log_probs[here] = found
            if entropy is not None and of_entropy is not None:
                entropy[here] = of_entropy
        return _on_host((log_probs, entropy))


def batches_by_length(probes: Sequence[Probe], batch_tokens: int) -> Iterator[list[int]]:
    """Divide probes into batches of like length, the longest first; yield their indices.

    A batch has at most ``batch_tokens`` tokens, padding included, or one probe.
    """
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(probes)), key=lambda index: -probes[index].num_tokens):
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        if not batch:
            width = probes[index].num_tokens
        batch.append(index)
    if batch:
        yield batch


def padded(
    batch: Sequence[Probe],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the ids of probes, and row and column of what predicts each response token, int64."""
    width = max(probe.num_tokens for probe in batch) - 1  # the last token is only scored
    ids = np.zeros((len(batch), width), np.int64)
    rows, columns = [], []
    for row, probe in enumerate(batch):
        known = np.concatenate([probe.prompt_ids, probe.token_ids[:-1]])
        ids[row, : len(known)] = known
        first = len(probe.prompt_ids) - 1
        rows.append(np.full(len(probe.token_ids), row))
        columns.append(np.arange(first, first + len(probe.token_ids)))
    return ids, np.concatenate(rows), np.concatenate(columns)


def _build(weights: StepWeights, tensors: Mapping[str, "torch.Tensor"], directory: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(directory)
            model_class = AutoModelForCausalLM._model_mapping[type(config)]
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
    except KeyError as error:
        raise InputError(
            f"{weights.source} is a {config.model_type}, of which transformers knows no causal language model"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"transformers cannot build the model of {weights.source}: {first}") from error
    for what, names in (("lacks", report["missing_keys"]), ("has other shapes of", report["mismatched_keys"])):
        if names:
            raise InputError(
                f"{weights.source} {what} {len(names)} tensors of a {type(model).__name__}, such as "
                f"{sorted(map(str, names))[0]}; its weights and its config.json do not belong together"
            )
    return model


def _places(model: Any, tensors: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"] | None:
    """Return where each tensor goes; None if one has no place, or two have the same, or a place is left out."""
    state = model.state_dict(keep_vars=True)
    given = {name: state.get(name) for name in tensors}
    if any(place is None or place.shape != tensors[name].shape for name, place in given.items()):
        return None
    filled = {place.data_ptr() for place in given.values() if place.numel()}
    own = {place.data_ptr() for place in state.values() if place.numel()}
    if filled != own or len(filled) < sum(bool(place.numel()) for place in given.values()):
        return None
    return {name: place.data for name, place in given.items()}


def _divide(model: Any) -> tuple[Any, Any]:
    """Return the base model and the linear head, or (None, None) if logits are anything but their product."""
    import torch

    base, head = model.base_model, model.get_output_embeddings()
    if base is model or not isinstance(head, torch.nn.Linear):
        return None, None
    trial: dict[str, Any] = {}

    def replace(module: Any, arguments: Any, output: Any) -> Any:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            return output
        generator = torch.Generator().manual_seed(0)
        made = torch.randn(hidden.shape, generator=generator).to(hidden.device, hidden.dtype)
        size = float((made @ head.weight.t()).abs().max()) or 1.0
        trial["hidden"] = output.last_hidden_state = made * (_TRIAL_LOGIT / size)
        return output

    handle = base.register_forward_hook(replace)
    try:
        with torch.inference_mode(), quiet_transformers():
            ids = torch.zeros((1, _TRIAL_ROWS), dtype=torch.int64, device=head.weight.device)
            logits = model(input_ids=ids, use_cache=False).logits
            if "hidden" not in trial or logits.shape[-1] != len(head.weight):
                return None, None
            expected = head(trial["hidden"])
            difference = float((logits.float() - expected.float()).abs().max())
    finally:
        handle.remove()
    tolerance = 4 * torch.finfo(head.weight.dtype).eps * _TRIAL_LOGIT
    return (base, head) if difference <= tolerance else (None, None)


def check_ids(probes: Sequence[Probe], vocab_size: int) -> None:
    """Refuse tokens that a model does not know; InputError."""
    for index, probe in enumerate(probes):
        for ids in (probe.prompt_ids, probe.token_ids):
            if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
                raise InputError(
                    f"response {index} has a token outside of the model's vocabulary of {vocab_size:,}; "
                    "it was written "
                    "with another tokenizer"
                )


def _on_host(
    found: tuple["torch.Tensor", "torch.Tensor | None"],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    log_probs, entropy = found
    return log_probs.cpu().numpy(), None if entropy is None else entropy.cpu().numpy()
