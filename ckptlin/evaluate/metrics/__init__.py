"""pass@k, avg@k, maj@k with intervals, paired comparison and lengths, from scores and votes alone."""

from ckptlin.evaluate.metrics.intervals import Interval
from ckptlin.evaluate.metrics.lengths import Lengths, lengths
from ckptlin.evaluate.metrics.majority import ABSTAINS, majority_at_k
from ckptlin.evaluate.metrics.paired import Comparison, RelativeGains, compare, relative_gains
from ckptlin.evaluate.metrics.pass_at_k import pass_at_k
from ckptlin.evaluate.metrics.summary import Estimate, Summary, default_ks, summarise

__all__ = [
    "ABSTAINS",
    "Comparison",
    "Estimate",
    "Interval",
    "Lengths",
    "RelativeGains",
    "Summary",
    "compare",
    "default_ks",
    "lengths",
    "majority_at_k",
    "pass_at_k",
    "relative_gains",
    "summarise",
]
