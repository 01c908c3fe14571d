"""Sums: the demo's task, on sums that no training has seen.

Sampled at temperature 1 and from all tokens, as training samples: greedy, the demo's model starts near the
ceiling.  A completion has 12 tokens at most, its end included; four answers to each of 1,000 sums take seconds.
"""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of(
    "sums",
    split="test",
    grader="exact",
    sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=16, num_samples=4),
    limit=1000,
)
