"""A pair of checkpoints in vLLM: what the entry point ``vllm.general_plugins`` calls in each of its processes.

``model`` is the model class, ``worker`` what changes α while an engine runs.
"""

__all__ = ["WORKER_EXTENSION", "register"]

# For vLLM's argument ``worker_extension_cls``.
WORKER_EXTENSION = "ckptlin.logits.vllm_plugin.worker.AlphaExtension"


def register() -> None:
    """Make the architecture known to vLLM and the configuration to transformers; no model is imported."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from ckptlin.logits.config import LogitsExtrapolationConfig
    from ckptlin.logits.pair import ARCHITECTURE, MODEL_TYPE

    AutoConfig.register(MODEL_TYPE, LogitsExtrapolationConfig, exist_ok=True)
    ModelRegistry.register_model(
        ARCHITECTURE, "ckptlin.logits.vllm_plugin.model:CkptlinLogitsExtrapolationForCausalLM"
    )
