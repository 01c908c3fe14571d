"""What a problem is, where problems come from, and how they are put to a model."""

from ckptlin.problems.load import load_problems
from ckptlin.problems.problem import Problem
from ckptlin.problems.sums import draw_sums, in_test_split, make_sum
from ckptlin.problems.template import TEMPLATES, PromptTemplate, get_template

__all__ = [
    "TEMPLATES",
    "Problem",
    "PromptTemplate",
    "draw_sums",
    "get_template",
    "in_test_split",
    "load_problems",
    "make_sum",
]
