"""What is asked: benchmarks and tasks of one's own, one a file."""

from ckptlin.evaluate.tasks.registry import TASKS, all_tasks, open_task
from ckptlin.evaluate.tasks.task import Task

__all__ = ["TASKS", "Task", "all_tasks", "open_task"]
