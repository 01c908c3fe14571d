"""AIME 2025: 30 problems, each answered by an integer from 0 to 999; 64 answers to each, as in the paper."""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of("aime25", grader="math", sampling=Sampling(num_samples=64))
