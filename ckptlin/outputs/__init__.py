"""What checkpoints say: answers, also by extrapolated logits; log-probabilities of tokens, activations."""

from ckptlin.outputs.generate import Answer, GenerationResult, generate

__all__ = ["Answer", "GenerationResult", "generate"]
