"""MATH-500: 500 problems of the MATH data set, of all its subjects and levels.

The paper draws 64 answers here too.  Four are the default: 2,000 answers, as many as AIME takes.  At the
paper's accuracy of .88 one answer to each has a standard error of .0145, the root of .88 · .12 / 500, and more
answers take nothing from it but what sampling has added to the choice of problems.
"""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of("math500", grader="math", sampling=Sampling(num_samples=4))
