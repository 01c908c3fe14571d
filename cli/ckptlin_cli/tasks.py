"""``ckptlin tasks``."""

from typing import TYPE_CHECKING

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json
from ckptlin_cli.tables import echo_pairs

if TYPE_CHECKING:
    from ckptlin.evaluate.tasks import Task

__all__ = ["command"]


@make_command("tasks", examples=["ckptlin tasks", "ckptlin tasks --json"])
@json_option
def command(as_json: bool) -> None:
    """List the tasks that models can be evaluated on.

    A file of problems and answers is a task too, and so is package.module:task; see docs/tasks.md.
    """
    from ckptlin.evaluate.tasks import all_tasks

    tasks = all_tasks()
    if as_json:
        print_json(
            {
                name: task.to_dict() | {"sampling": task.sampling.to_dict(), "description": task.description}
                for name, task in tasks.items()
            }
        )
        return
    echo_pairs(
        [
            *((name, f"{task.description}; {_manner(task)}") for name, task in tasks.items()),
            ("FILE", "problems of your own (.jsonl, .json, .parquet), a problem and an answer in each row"),
        ]
    )


def _manner(task: "Task") -> str:
    sampling = task.sampling
    return f"grader {task.grader}, {sampling.num_samples} answers at temperature {sampling.temperature:g}"
