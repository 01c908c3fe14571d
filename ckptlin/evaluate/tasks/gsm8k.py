"""GSM8K: the 1,319 word problems of its test split, in the layout that has the answer behind ``####``.

Two answers to each are 2,638, more than AIME takes, and with so many problems one would do for accuracy.  Ask
for more where pass@k or a majority vote is wanted.
"""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of("gsm8k", grader="math", sampling=Sampling(num_samples=2))
