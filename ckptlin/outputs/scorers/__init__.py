"""Engines that compute the log-probabilities of given tokens, one a file."""

from ckptlin.outputs.scorers.registry import SCORERS, open_scorer
from ckptlin.outputs.scorers.scorer import Probe, Scored, Scorer, ScorerOptions

__all__ = ["SCORERS", "Probe", "Scored", "Scorer", "ScorerOptions", "open_scorer"]
