"""The algorithms written down plainly in float64, from their papers, for one mini-batch.

Advantages from rewards ``(num_prompts, num_rollouts)`` by NumPy; losses from log-probabilities
``(num_answers, num_tokens)`` by torch, so that their gradients are there as well.  The small number in the
denominators is the trainer's, 1e-4 within groups and for a batch's deviation, 1e-8 where rewards are whitened.
"""

import torch

__all__ = ["advantages", "loss", "token_logps"]


def advantages(name, rewards):
    """Return ``(num_prompts, num_rollouts)`` advantages; deviations are those of a sample (n − 1)."""
    mean, deviation = rewards.mean(axis=1, keepdims=True), rewards.std(axis=1, ddof=1, keepdims=True)
    if name == "dr_grpo":  # 2503.20783, section 3.1
        return rewards - mean
    if name == "reinforce++":  # 2501.03262, eq. 5
        return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-8)
    if name == "reinforce++-baseline":
        return (rewards - mean) / (rewards.std(ddof=1) + 1e-4)
    return (rewards - mean) / (deviation + 1e-4)  # 2402.03300, section 4.1.2


def loss(name, logps, old_logps, advantage, mask, *, low, high, max_length, total_tokens):
    """Return the loss of a mini-batch, to be minimised.

    ``total_tokens`` are those of a mini-batch as long as the batch's average one.
    """
    log_ratio = logps - old_logps
    lengths = mask.sum(dim=1, keepdim=True)
    if name == "gspo":  # 2507.18071, eq. 7: the geometric mean over the answer
        ratio = torch.exp((log_ratio * mask).sum(dim=1, keepdim=True) / lengths).expand_as(logps)
    else:
        ratio = torch.exp(log_ratio)
    clipped = torch.minimum(torch.maximum(ratio, torch.tensor(1 - low)), torch.tensor(1 + high))
    gain = torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None]) * mask
    if name in ("grpo", "gspo"):
        return -(gain.sum(dim=1, keepdim=True) / lengths).mean()
    if name == "dr_grpo":
        return -gain.sum() / (len(gain) * max_length)
    return -gain.sum() / total_tokens  # 2503.14476, eq. 8: all tokens alike


def token_logps(model, ids, mask, num_completion, temperature):
    """Return log-probabilities ``(num_answers, num_completion)`` of a model's copy in float64."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -num_completion - 1 : -1] / temperature
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, -num_completion:, None])[..., 0]
