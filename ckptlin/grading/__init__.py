"""Graders: verifiable scores, shared by training and evaluation."""

from ckptlin.grading.grader import Completion, Grader
from ckptlin.grading.registry import GraderEntry, all_graders, open_grader

__all__ = ["Completion", "Grader", "GraderEntry", "all_graders", "open_grader"]
