"""Graders: verifiable scores, shared by training and evaluation."""

from ckptlin.grading.grader import Completion, Grader, Voter
from ckptlin.grading.registry import GraderEntry, all_graders, open_grader

__all__ = ["Completion", "Grader", "GraderEntry", "Voter", "all_graders", "open_grader"]
