"""Engines that compute the log-probabilities of given tokens, one a file."""

from ckptlin.outputs.scorers.scorer import SCORERS, Probe, Scored, Scorer, ScorerOptions, open_scorer

__all__ = ["SCORERS", "Probe", "Scored", "Scorer", "ScorerOptions", "open_scorer"]
