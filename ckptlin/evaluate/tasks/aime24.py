"""AIME 2024: 30 problems, each answered by an integer from 0 to 999.

64 answers to each, as in the paper: with so few problems, fewer answers would add much noise of their own to
that of the choice of problems.
"""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of("aime24", grader="math", sampling=Sampling(num_samples=64))
