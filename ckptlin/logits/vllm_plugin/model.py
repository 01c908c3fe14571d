"""The model class: both checkpoints as vLLM's own models under two prefixes, logits mixed before the sampler.

Each attention layer of each model registers itself under its own name, so that vLLM's scheduler counts the
keys and values of both, and everything else (batching, prefix caching, chunked prefill, samplers, tensor
parallelism) works as for one model.  The runner carries one row of hidden states a token from `forward` to
`compute_logits`: here it is the rows of both models side by side.

Left out: pipeline parallelism, LoRA, quantised models, prompt embeddings, speculative decoding.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix

from ckptlin.errors import InputError
from ckptlin.logits.mixing import mix_logits
from ckptlin.logits.pair import read_pair

__all__ = ["CkptlinLogitsExtrapolationForCausalLM"]

# vLLM finds a layer's number in its name, and refuses a name with two; these have none.
_PARTS = ("base", "second")


class CkptlinLogitsExtrapolationForCausalLM(nn.Module):  # type: ignore[misc]
    """Two causal language models of vLLM whose logits are mixed as l₁ + α(l₂ − l₁).

    Parameters
    ----------
    vllm_config : VllmConfig
        Of the pair's directory.
    prefix : str

    Attributes
    ----------
    alpha : float

    Raises
    ------
    InputError
        If vLLM is to do what is left out here.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        for option, value in (
            ("quantization", vllm_config.quant_config),
            ("LoRA", vllm_config.lora_config),
            ("speculative decoding", vllm_config.speculative_config),
        ):
            if value is not None:
                raise InputError(f"a pair of checkpoints does not go with {option} in vLLM")
        self.config = vllm_config.model_config.hf_config
        # The runner's own object, whose path changes when other weights are loaded.
        self._model_config = vllm_config.model_config
        self._loaded_from: str | None = None
        self.alpha = float(self.config.alpha)
        text_config = self.config.text_config
        for part in _PARTS:
            # vLLM keeps compiled graphs by a hash of the configuration, and a graph knows the names of its
            # layers: the second model must never be given the first one's.
            own = copy.deepcopy(text_config)
            own.ckptlin_part = part
            with set_model_tag(f"ckptlin_{part}"):
                model = init_vllm_registered_model(
                    vllm_config,
                    prefix=maybe_prefix(prefix, part),
                    hf_config=own,
                    architectures=list(text_config.architectures),
                )
            setattr(self, part, model)

    @property
    def secondary_weights(self) -> Iterator[DefaultModelLoader.Source]:
        """Where vLLM's loader finds the weights; the pair's own directory has none."""
        pair = read_pair(self._model_config.model)
        for part, path in zip(_PARTS, (pair.base, pair.second), strict=True):
            yield DefaultModelLoader.Source(str(path), revision=None, prefix=f"{part}.")

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Refuse: two models have two embeddings."""
        raise NotImplementedError("a pair of checkpoints has two embeddings; give token ids")

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the hidden states of both models side by side.

        Parameters
        ----------
        input_ids, positions : torch.Tensor
            ``(num_tokens,)``
        intermediate_tensors : None
            Of pipeline parallelism, which this class does not declare.
        inputs_embeds : None

        Returns
        -------
        torch.Tensor
            ``(num_tokens, 2 * hidden_size)``
        """
        if inputs_embeds is not None:
            raise NotImplementedError("a pair of checkpoints has two embeddings; give token ids")
        return torch.cat([getattr(self, part)(input_ids, positions) for part in _PARTS], dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return mixed logits in float32; None on ranks that have none.

        Parameters
        ----------
        hidden_states : torch.Tensor
            ``(num_rows, 2 * hidden_size)``
        """
        halves = hidden_states.chunk(2, dim=-1)
        first, last = (
            getattr(self, part).compute_logits(half.contiguous())
            for part, half in zip(_PARTS, halves, strict=True)
        )
        return None if first is None or last is None else mix_logits(first, last, self.alpha)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights named ``base.…`` and ``second.…``; of another pair α as well.

        Raises
        ------
        InputError
            If a model gets none: a loader of vLLM that does not know `secondary_weights`.
        """
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        if missing := set(_PARTS) - {name.partition(".")[0] for name in loaded}:
            raise InputError(
                f"vLLM's loader gave no weights of the {sorted(missing)[0]} checkpoint; use --load-format auto "
                "or safetensors"
            )
        if self._loaded_from != self._model_config.model:
            self._loaded_from = self._model_config.model
            self.alpha = read_pair(self._model_config.model).alpha
        return loaded
