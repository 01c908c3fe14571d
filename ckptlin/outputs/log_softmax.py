"""Log-probabilities of given tokens out of hidden states, without the logits ever lying in memory whole.

A vocabulary of 150,000 makes the logits of one sequence of 32,000 tokens 20 GB in float32.  Here they are made
block by block, over rows and over the vocabulary, and only a running maximum and two sums are kept of them:

    m = max x      s = Σ exp(x − m)      t = Σ (x − m)·exp(x − m)
    log p = x_token − m − log s          entropy = log s − t/s

Products of 16-bit numbers are summed and kept in float32: rounding a logit of 20 to bfloat16 moves it by up to
0.06.  All else is float32 too.  A running maximum of −inf (a block of tokens that are masked out) is no hazard:
its sums are 0.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["from_logits", "token_log_probs"]

# Values of a block on a CPU, where it should stay in the cache of a core, and on a device, where it should keep
# all of it busy (256 MB in float32).
_CPU_ROWS, _CPU_COLUMNS = 512, 4096
_DEVICE_ROWS, _DEVICE_COLUMNS = 4096, 16_384


def token_log_probs(
    hidden: "Tensor",
    tokens: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    *,
    with_entropy: bool = False,
    block: tuple[int, int] | None = None,
) -> tuple["Tensor", "Tensor | None"]:
    """Return the log-probability of a token after each hidden state, under a linear head.

    Parameters
    ----------
    hidden : (num_rows, hidden_size) tensor
    tokens : (num_rows,) int64 tensor
    weight : (vocab_size, hidden_size) tensor
        Of the head, of the same dtype and device.
    bias : (vocab_size,) tensor, optional
    with_entropy : bool
        Return the entropy of each distribution too, in nats.
    block : (int, int), optional
        Rows and tokens of the vocabulary at a time; the result does not depend on it beyond rounding.

    Returns
    -------
    (num_rows,) float32 tensor, and another one or None
    """
    import torch

    on_cpu = hidden.device.type == "cpu"
    rows_at_once, columns_at_once = block or (
        (_CPU_ROWS, _CPU_COLUMNS) if on_cpu else (_DEVICE_ROWS, _DEVICE_COLUMNS)
    )
    num_rows, vocab_size = len(hidden), len(weight)
    log_probs = torch.empty(num_rows, dtype=torch.float32, device=hidden.device)
    entropy = torch.empty_like(log_probs) if with_entropy else None
    running = _Running(num_rows, hidden.device, with_entropy)
    columns = range(0, vocab_size, columns_at_once)
    # On a CPU 16-bit weights are widened once for all rows, so the vocabulary is the outer loop.
    for first in columns:
        part = weight[first : first + columns_at_once]
        part = part.float() if on_cpu else part
        part_bias = None if bias is None else bias[first : first + columns_at_once].float()
        for lo in range(0, num_rows, rows_at_once):
            rows = slice(lo, lo + rows_at_once)
            logits = _product(hidden[rows], part)
            if part_bias is not None:
                logits += part_bias
            running.add(logits, tokens[rows], first, rows)
    running.finish(log_probs, entropy)
    return log_probs, entropy


def from_logits(
    logits: "Tensor", tokens: "Tensor", *, with_entropy: bool = False
) -> tuple["Tensor", "Tensor | None"]:
    """Return the same of logits that a model has made itself, ``(num_rows, vocab_size)``."""
    import torch

    log_probs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    entropy = torch.empty_like(log_probs) if with_entropy else None
    running = _Running(len(logits), logits.device, with_entropy)
    for first in range(0, logits.shape[1], _DEVICE_COLUMNS):
        part = logits[:, first : first + _DEVICE_COLUMNS].to(torch.float32, copy=True)
        running.add(part, tokens, first, slice(None))
    running.finish(log_probs, entropy)
    return log_probs, entropy


class _Running:
    """Maximum and sums over the part of the vocabulary that was seen, of each row."""

    def __init__(self, num_rows: int, device: object, with_entropy: bool) -> None:
        import torch

        def filled(value: float) -> "Tensor":
            return torch.full((num_rows,), value, dtype=torch.float32, device=device)

        self._largest = filled(float("-inf"))
        self._sum = filled(0.0)
        self._weighted = filled(0.0) if with_entropy else None
        self._token = filled(0.0)

    def add(self, logits: "Tensor", tokens: "Tensor", first: int, rows: slice) -> None:
        """Add a block of logits, float32, which are overwritten; its columns count from ``first`` on."""
        import torch

        place = tokens - first
        is_here = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self._token[rows] = torch.where(is_here, found, self._token[rows])
        before = self._largest[rows]
        largest = torch.maximum(before, logits.amax(dim=1))
        # exp(−inf − −inf) would be NaN where nothing but −inf was seen.
        shift = largest.masked_fill(largest == float("-inf"), 0.0)
        logits -= shift.unsqueeze(1)
        moved = before - shift
        scale = moved.exp()
        if self._weighted is None:
            total = logits.exp_().sum(dim=1)
        else:
            weights = logits.exp()
            total = weights.sum(dim=1)
            # −inf times 0 is NaN; such a token adds nothing.
            weights *= logits.clamp_min_(-1e30)
            earlier = self._weighted[rows] + self._sum[rows] * moved.clamp_min(-1e30)
            self._weighted[rows] = scale * earlier + weights.sum(dim=1)
        self._sum[rows] = scale * self._sum[rows] + total
        self._largest[rows] = largest

    def finish(self, log_probs: "Tensor", entropy: "Tensor | None") -> None:
        """Write what the sums make."""
        import torch

        log_sum = self._sum.log()
        # Rounding may lift the certain token by one unit in the last place above 0.
        torch.clamp(self._token - self._largest - log_sum, max=0.0, out=log_probs)
        if entropy is not None and self._weighted is not None:
            torch.clamp(log_sum - self._weighted / self._sum, min=0.0, out=entropy)


def _product(hidden: "Tensor", weight: "Tensor") -> "Tensor":
    import torch

    if hidden.device.type == "cpu" or hidden.dtype == torch.float32:
        return torch.mm(hidden.float(), weight.t())
    if hidden.device.type == "cuda":
        with suppress(TypeError):  # torch before 2.8 has no such argument
            # 16-bit factors on the tensor cores, sums and results in float32.
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return torch.mm(hidden.float(), weight.float().t())
