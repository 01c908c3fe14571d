"""The one formula of logits extrapolation, which both engines apply."""

from typing import Any

__all__ = ["mix_logits"]


def mix_logits(base: Any, second: Any, alpha: float) -> Any:
    """Return l₁ + α(l₂ − l₁) in float32 (arXiv 2601.04537), before temperature and top-p.

    Parameters
    ----------
    base, second : torch.Tensor
        ``(..., vocab_size)``, of one shape and any float dtype; neither is changed.
    alpha : float
        0 gives ``base`` bit for bit.  1 gives ``second`` up to the rounding of the difference.

    Notes
    -----
    What models compute in bfloat16 is rounded before it gets here, by up to 2⁻⁹ of its size, and α beyond 1
    multiplies that rounding by 2α − 1.
    """
    start = base.float()
    # −inf in both, of a token that a model masks, would become NaN in the difference.
    return start + alpha * (second.float() - start)
