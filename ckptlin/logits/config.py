"""The configuration of a pair, as transformers and vLLM read it."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ckptlin.logits.pair import ARCHITECTURE, MODEL_TYPE

__all__ = ["LogitsExtrapolationConfig"]


class LogitsExtrapolationConfig(PretrainedConfig):  # type: ignore[misc]
    """Two paths, α, and the configuration that both checkpoints share.

    Parameters
    ----------
    text_config : dict or PretrainedConfig, optional
        Of each of the two models; readers reach it by ``get_text_config()``.
    base, second : str
        Directories.
    alpha : float
    steps : list of int, optional
    target : int, optional
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - transformers declares it so

    def __init__(
        self,
        text_config: Any = None,
        base: str = "",
        second: str = "",
        alpha: float = 1.0,
        steps: list[int] | None = None,
        target: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            # Copied, since `for_model` takes the type out.
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.base = base
        self.second = second
        self.alpha = alpha
        self.steps = steps
        self.target = target
        kwargs.setdefault("architectures", [ARCHITECTURE])
        super().__init__(**kwargs)
