"""The one formula of logits extrapolation, which both engines apply."""

import torch

__all__ = ["mix_logits"]


def mix_logits(base: torch.Tensor, second: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return l₁ + α(l₂ − l₁) in float32 (arXiv 2601.04537), before temperature and top-p.

    Parameters
    ----------
    base, second : torch.Tensor
        ``(..., vocab_size)``, of one shape and any float dtype; neither is changed.
    alpha : float
        0 gives ``base`` and 1 gives ``second``, bit for bit.

    Returns
    -------
    torch.Tensor
        ``(..., vocab_size) float32``; NaN where either is NaN, or both are the same infinity.

    Notes
    -----
    Logits that a model computes in bfloat16 are rounded before they get here, by up to 2⁻⁹ of their size, and α
    beyond 1 multiplies that by up to 2α − 1.
    """
    # From 0.5 on torch's lerp starts at the second, so that both ends are exact.
    return torch.lerp(base.float(), second.float(), alpha)
