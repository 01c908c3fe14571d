"""A task of a public data set."""

from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks.task import Task
from ckptlin.problems.data_sets import get_data_set

__all__ = ["task_of"]


def task_of(
    name: str, *, grader: str, sampling: Sampling, split: str | None = None, limit: int | None = None
) -> Task:
    """Make the task of a data set; what is known of the data stands with them and is not said again.

    Parameters
    ----------
    name : str
        Of the data set.
    grader : str
    sampling : Sampling
    split : str, optional
    limit : int, optional
    """
    data_set = get_data_set(name)
    return Task(
        name,
        data_set.source_of(split=split),
        template=data_set.template,
        grader=grader,
        sampling=sampling,
        description=data_set.description,
        data_set=name,
        limit=limit,
    )
