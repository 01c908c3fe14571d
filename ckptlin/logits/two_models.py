"""Logits extrapolation in transformers: two models behind one face, each with its own cache.

transformers' ``generate`` does the rest: batches with padding on the left, samplers, stopping.
"""

import os
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ckptlin.errors import CkptlinError, InputError
from ckptlin.logits.config import LogitsExtrapolationConfig
from ckptlin.logits.mixing import mix_logits
from ckptlin.logits.pair import read_pair

__all__ = ["LogitsExtrapolationForCausalLM", "PairCache"]


class PairCache(Cache):  # type: ignore[misc]
    """The caches of two models that see the same tokens.

    What is asked of it as a whole (its length, a new order of its rows) is asked of the layers of both.

    Parameters
    ----------
    config : PretrainedConfig
        That both models share.
    """

    def __init__(self, config: Any) -> None:
        self.base = DynamicCache(config=config)
        self.second = DynamicCache(config=config)
        # Layers are there from the start, so that this list holds all of them.
        super().__init__(layers=[*self.base.layers, *self.second.layers])


class LogitsExtrapolationForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Two models whose logits are mixed as l₁ + α(l₂ − l₁), in float32, at every token.

    Parameters
    ----------
    config : LogitsExtrapolationConfig
    base, second : torch.nn.Module
        Causal language models of transformers.

    Attributes
    ----------
    alpha : float
        May be changed between two calls of ``generate``.
    """

    config_class = LogitsExtrapolationConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: Any, base: Any = None, second: Any = None) -> None:
        if base is None or second is None:
            raise CkptlinError("a pair is made of two models that are loaded; use from_pretrained")
        super().__init__(config)
        self.base = base
        self.second = second
        self.alpha = float(config.alpha)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *args: Any, config: Any = None, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, set[Any]]]:
        """Load the directory of a pair.

        Parameters
        ----------
        directory : path-like
            What `ckptlin.logits.write_pair` wrote.
        config : LogitsExtrapolationConfig, optional
        **kwargs
            Of ``AutoModelForCausalLM.from_pretrained``, for both models: ``dtype``, ``device_map``, ...

        Returns
        -------
        model : LogitsExtrapolationForCausalLM
        report : dict
            If ``output_loading_info`` is asked for: of both models, names begin with ``base.`` or ``second.``.
        """
        pair = read_pair(directory)
        if config is None:
            config = LogitsExtrapolationConfig.from_pretrained(directory)
        config.base, config.second, config.alpha = str(pair.base), str(pair.second), pair.alpha
        # What AutoModelForCausalLM found out about the directory does not hold for the models.
        for name in ("adapter_kwargs", "_from_auto", "_commit_hash", "state_dict", "trust_remote_code"):
            kwargs.pop(name, None)
        with_report = kwargs.pop("output_loading_info", False)
        models: list[Any] = []
        report: dict[str, set[Any]] = {}
        for part, path in (("base", pair.base), ("second", pair.second)):
            model, found = AutoModelForCausalLM.from_pretrained(
                path, config=config.text_config, output_loading_info=True, **kwargs
            )
            models.append(model)
            for kind, keys in found.items():
                report.setdefault(kind, set()).update(
                    f"{part}.{key}" if isinstance(key, str) else (f"{part}.{key[0]}", *key[1:]) for key in keys
                )
        pair_model = cls(config, *models)
        if (Path(directory) / "generation_config.json").is_file():
            pair_model.generation_config = GenerationConfig.from_pretrained(directory)
        return (pair_model, report) if with_report else pair_model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a pair's directory is written by `ckptlin.logits.write_pair`.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            "a pair has no weights of its own to save; ckptlin.logits.write_pair writes its directory"
        )

    def get_input_embeddings(self) -> Any:
        """Return the base's; what is embedded by it means nothing to the second."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """Return nothing: logits come from two heads."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: Any = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return mixed logits, and the caches of both models.

        Parameters
        ----------
        input_ids : torch.Tensor
            ``(batch, length) int64``
        attention_mask : torch.Tensor, optional
            ``(batch, length so far)``, or what else the models take.
        position_ids : torch.Tensor, optional
            ``(batch, length) int64``
        past_key_values : Cache, optional
            A `PairCache`, or a cache with nothing in it, which then is not used.
        use_cache : bool, optional
        logits_to_keep : int or torch.Tensor
            Logits are computed for so many of the last tokens alone; 0 for all.

        Raises
        ------
        InputError
            If the cache is one model's, or there are embeddings instead of ids.
        """
        if kwargs.pop("inputs_embeds", None) is not None or input_ids is None:
            raise InputError("two models have two embeddings; give input_ids")
        cache = self._cache(past_key_values, use_cache=use_cache)
        logits = []
        for model, own in (
            (self.base, None if cache is None else cache.base),
            (self.second, None if cache is None else cache.second),
        ):
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=own,
                use_cache=cache is not None,
                logits_to_keep=logits_to_keep,
                **{name: value for name, value in kwargs.items() if name != "return_dict"},
            )
            logits.append(output.logits)
        return CausalLMOutputWithPast(
            logits=mix_logits(logits[0], logits[1], self.alpha), past_key_values=cache
        )

    def _cache(self, given: Any, *, use_cache: bool | None) -> PairCache | None:
        if isinstance(given, PairCache):
            return given
        if given is not None and given.get_seq_length() > 0:
            raise InputError("the cache is of one model; a pair keeps keys and values of two, in a PairCache")
        wanted = self.config.get_text_config().use_cache if use_cache is None else use_cache
        return PairCache(self.config.get_text_config()) if wanted or given is not None else None

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave everything: both models are loaded."""

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        device: torch.device = self.base.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the models compute in; logits are float32."""
        dtype: torch.dtype = self.base.dtype
        return dtype
