"""What checkpoints say: answers to prompts, also by logits that are extrapolated."""

from ckptlin.outputs.generate import Answer, GenerationResult, generate

__all__ = ["Answer", "GenerationResult", "generate"]
