"""Tasks by name: ckptlin's own, those that other packages add, and a user's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError, SelectionError
from ckptlin.evaluate.tasks import aime24, aime25, gsm8k, livecodebench, math500, sums
from ckptlin.evaluate.tasks.task import Task
from ckptlin.grading.function import load_object
from ckptlin.problems.data_sets import get_data_set
from ckptlin.problems.load import SUFFIXES
from ckptlin.problems.window import Window, as_window

__all__ = ["TASKS", "all_tasks", "open_task"]

_GROUP = "ckptlin.tasks"

# Those of ckptlin itself; `all_tasks` has those of other packages too.
TASKS: Mapping[str, Task] = {
    module.TASK.name: module.TASK for module in (aime24, aime25, math500, gsm8k, livecodebench, sums)
}


@cache
def all_tasks() -> Mapping[str, Task]:
    """Return every task by name: ckptlin's own, then those that installed packages add.

    A package adds a task by an entry point in the group ``ckptlin.tasks`` that names a `Task`, or a function
    without arguments that returns one.

    Raises
    ------
    InputError
        If an entry point names something else, or takes a name that is taken.
    """
    found = dict(TASKS)
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        where = f"entry point {point.name} of the group {_GROUP} ({point.value})"
        task = _as_task(point.load(), where)
        if task.name in found:
            raise InputError(
                f"{where} takes the name of the task {task.name}, which is there already; correct or uninstall "
                "the package"
            )
        found[task.name] = task
    return found


def open_task(
    name: str | Path,
    *,
    data: str | Path | None = None,
    template: str | None = None,
    grader: str | None = None,
    grader_parameters: Mapping[str, Any] | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    window: str | Sequence[str] | Window | None = None,
) -> Task:
    """Find a task, and change what is asked for.

    Parameters
    ----------
    name : str or Path
        Of a task; a file (``.jsonl``, ``.json``, ``.parquet``) whose rows have a ``problem`` and an ``answer``,
        which is put by the template ``boxed`` and graded by ``math``; or ``package.module:object``, a `Task` or
        a function that returns one.
    data : str or Path, optional
        The same data as a file, or from another source.
    template, grader, split : str, optional
    grader_parameters, columns : mapping, optional
        The parameters are those of the grader, in place of the task's.
    limit : int, optional
        Only the first so many problems.
    window : str, two str or Window, optional
        Only problems of this time: ``FROM:TO``, both days included.

    Raises
    ------
    SelectionError
        If there is no task of that name, or it has no such split.
    InputError
        If what is asked for makes no sense.

    Examples
    --------
    >>> task = open_task("sums", limit=2)
    >>> [problem.answer for problem in task.load()], task.sampling.temperature
    (['9;17;20;26', '13;20;20;20'], 1.0)
    """
    task = _found(str(name))
    changes: dict[str, Any] = {
        "template": template,
        "grader_parameters": grader_parameters,
        "columns": columns,
        "limit": limit,
        "window": as_window(window),
    }
    if grader is not None and grader != task.grader:
        # Those that it had are another grader's.
        changes |= {"grader": grader, "grader_parameters": grader_parameters or {}}
    if split is not None:
        changes |= _split(task, split)
    if data is not None:
        changes["source"] = str(data)
    return replace(task, **{field: value for field, value in changes.items() if value is not None})


def _found(name: str) -> Task:
    if name in all_tasks():
        return all_tasks()[name]
    if name.endswith(SUFFIXES):
        return Task(Path(name).stem, name, description="a file of your own")
    if ":" in name:
        return _as_task(load_object(name, what="task"), name)
    raise SelectionError(
        f"there is no task {name!r}; choose {', '.join(sorted(all_tasks()))}, give a file "
        f"({', '.join(SUFFIXES)}) with problem and answer, or name one in Python, package.module:task"
    )


def _as_task(loaded: Any, where: str) -> Task:
    """Return a task, or what a function makes."""
    if isinstance(loaded, Task):
        return loaded
    if callable(loaded) and not isinstance(loaded, type):
        try:
            made = loaded()
        except Exception as error:
            raise InputError(
                f"{where} raised {type(error).__name__}: {error} when called for its task; correct it"
            ) from error
        if isinstance(made, Task):
            return made
        raise InputError(f"{where} returned a {type(made).__name__} and no Task; correct it")
    raise InputError(
        f"{where} is a {type(loaded).__name__}, neither a Task nor a function that returns one; correct it"
    )


def _split(task: Task, split: str) -> dict[str, Any]:
    """Name another split: of a data set known by name it stands in the source."""
    if task.data_set is None:
        return {"split": split}
    return {"split": split, "source": get_data_set(task.data_set).source_of(split=split)}
