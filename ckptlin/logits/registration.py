"""How transformers comes to know what a pair's directory is."""

from ckptlin.logits.pair import MODEL_TYPE

__all__ = ["register_pairs"]


def register_pairs() -> None:
    """Let transformers' ``AutoConfig`` and ``AutoModelForCausalLM`` load the directory of a pair.

    Called again it does nothing.  It imports transformers, and torch.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from ckptlin.logits.config import LogitsExtrapolationConfig
    from ckptlin.logits.two_models import LogitsExtrapolationForCausalLM

    AutoConfig.register(MODEL_TYPE, LogitsExtrapolationConfig, exist_ok=True)
    AutoModelForCausalLM.register(LogitsExtrapolationConfig, LogitsExtrapolationForCausalLM, exist_ok=True)
