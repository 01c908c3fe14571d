"""Two checkpoints that speak as one: logits extrapolated in the step, l = l₁ + α(l₂ − l₁), at every token.

A *pair* is a directory that engines load like a model: ``pair`` makes, writes and reads it.  ``two_models``
runs it in transformers, ``vllm_plugin`` in vLLM.
"""

from ckptlin.logits.pair import (
    ARCHITECTURE,
    MODEL_TYPE,
    LogitsPair,
    is_pair,
    make_pair,
    read_pair,
    write_pair,
)
from ckptlin.logits.registration import register_pairs

__all__ = [
    "ARCHITECTURE",
    "MODEL_TYPE",
    "LogitsPair",
    "is_pair",
    "make_pair",
    "read_pair",
    "register_pairs",
    "write_pair",
]
