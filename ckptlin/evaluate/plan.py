"""What an evaluation will do, and what its samples depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptlin.evaluate.directory import EvaluationDirectory, hash_problems
from ckptlin.evaluate.engines import EngineOptions, default_engine
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks import Task
from ckptlin.problems import Problem, PromptTemplate

__all__ = ["EvaluationPlan", "plan_evaluation"]


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do.

    Attributes
    ----------
    task : Task
    problems : tuple of Problem
    template : PromptTemplate
    models : tuple of EvaluatedModel
    sampling : Sampling
    engine : str
    options : EngineOptions
        All but the length of the longest prompt with its answer, which is known when prompts are encoded.
    out_dir : Path
    done : mapping of str to int
        Samples that are there already, by model.
    """

    task: Task
    problems: tuple[Problem, ...] = field(repr=False)
    template: PromptTemplate
    models: tuple[EvaluatedModel, ...]
    sampling: Sampling
    engine: str
    options: EngineOptions
    out_dir: Path
    done: Mapping[str, int]

    @property
    def num_samples(self) -> int:
        """Of each model."""
        return len(self.problems) * self.sampling.num_samples

    @property
    def settings(self) -> dict[str, Any]:
        """What samples depend on, as plain data, and their grader; more samples may be asked for."""
        sampling = self.sampling.to_dict()
        del sampling["num_samples"]
        return {
            "format": 1,
            "task": self.task.name,
            "template": {"text": self.template.text, "chat": self.template.chat},
            "problems": hash_problems(self.problems),
            "sampling": sampling,
            "engine": {"name": self.engine, "dtype": self.options.dtype},
            "grader": {"name": self.task.grader, "parameters": dict(self.task.grader_parameters)},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "out": str(self.out_dir),
            "task": self.task.to_dict(),
            "num_problems": len(self.problems),
            "sampling": self.sampling.to_dict(),
            "engine": self.engine,
            "models": [model.to_dict() | {"samples_done": self.done[model.label]} for model in self.models],
            "num_samples": self.num_samples * len(self.models),
        }


def plan_evaluation(
    models: Sequence[EvaluatedModel],
    task: Task,
    out_dir: Path | str,
    *,
    chat: bool | None = None,
    sampling: Sampling | None = None,
    engine: str | None = None,
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> EvaluationPlan:
    """Load the problems, and find out what is to be done, without touching a model.

    Parameters
    ----------
    models : sequence of EvaluatedModel
    task : Task
    out_dir : Path or str
        Directory of the evaluation, see `ckptlin.evaluate.directory`.
    chat : bool, optional
        Whether prompts are chat messages; default as the task's template says.
    sampling : Sampling, optional
        Default the task's.
    engine : str, optional
        Default ``vllm`` where it is installed, else ``hf``.
    options : EngineOptions, optional
    overwrite : bool
        Whether what is there is to be removed.

    Raises
    ------
    InputError
        If the data cannot be loaded or lack what the grader needs.
    """
    problems = task.load()
    template = task.prompt_template
    sampling = sampling or task.sampling
    path = Path(out_dir)
    directory = EvaluationDirectory(path, {})
    wanted = {(problem.id, sample) for problem in problems for sample in range(sampling.num_samples)}
    done = {model.label: 0 if overwrite else len(directory.done(model.label) & wanted) for model in models}
    return EvaluationPlan(
        task=task,
        problems=problems,
        template=template if chat is None else replace(template, chat=chat),
        models=tuple(models),
        sampling=sampling,
        engine=engine or default_engine(),
        options=options or EngineOptions(),
        out_dir=path,
        done=done,
    )
