"""LiveCodeBench: programs for problems of LeetCode, AtCoder and Codeforces, run on their tests.

A problem has a date, and models have been trained on what came before them: give the window, which is in the
record, or results cannot be compared.  Four answers to each, since grading runs every program on all of the
problem's tests; LiveCodeBench itself draws ten.
"""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.public import task_of

__all__ = ["TASK"]

TASK = task_of("livecodebench", grader="code", sampling=Sampling(num_samples=4))
