"""What an evaluation will do, and what its samples depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.evaluate.directory import EvaluationDirectory, check_evaluation, hash_problems
from ckptlin.evaluate.engines import EngineOptions, default_engine, open_engine
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
    ks : tuple of int, or None
        Of pass@k and maj@k; None for 1 and the powers of two up to the number of samples.
    baseline : str
        Label of the model that the others are compared with.
    overwrite : bool
        Whether what is there of an evaluation is removed, once a model answers.
    """

    task: Task
    problems: tuple[Problem, ...] = field(repr=False)
    template: PromptTemplate
    models: tuple[EvaluatedModel, ...]
    sampling: Sampling
    engine: str
    options: EngineOptions
    out_dir: Path
    ks: tuple[int, ...] | None
    baseline: str
    overwrite: bool

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
            "problems": {"number": len(self.problems), "hash": hash_problems(self.problems)},
            "sampling": sampling,
            "engine": {"name": self.engine, "dtype": self.options.dtype},
            "grader": {"name": self.task.grader, "parameters": dict(self.task.grader_parameters)},
        }

    def done(self) -> dict[str, int]:
        """Return how many of the samples are there already, by model."""
        directory = EvaluationDirectory(self.out_dir, {})
        wanted = {(p.id, sample) for p in self.problems for sample in range(self.sampling.num_samples)}
        labels = [model.label for model in self.models]
        return {label: 0 if self.overwrite else len(directory.done(label) & wanted) for label in labels}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        done = self.done()
        return {
            "out": str(self.out_dir),
            "task": self.task.to_dict(),
            "num_problems": len(self.problems),
            "sampling": self.sampling.to_dict(),
            "engine": self.engine,
            "models": [model.to_dict() | {"samples_done": done[model.label]} for model in self.models],
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
    ks: Sequence[int] | None = None,
    baseline: str | None = None,
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
    ks : sequence of int, optional
        Of pass@k and maj@k; default 1 and the powers of two up to the number of samples.
    baseline : str, optional
        Label of the model that the others are compared with; default the first.
    overwrite : bool
        Remove what is there of an evaluation, once a model answers.

    Raises
    ------
    InputError
        If the data cannot be loaded or lack what the grader needs, an option makes no sense, or what is there
        depends on other settings.
    MissingExtraError
        If the engine is not installed.
    """
    sampling = sampling or task.sampling
    if sampling.is_greedy and sampling.num_samples > 1:
        raise InputError(
            f"at temperature 0 all {sampling.num_samples} answers to a problem would be the same; ask for one"
        )
    for k in ks or ():
        if not 1 <= k <= sampling.num_samples:
            raise InputError(
                f"k = {k} is not between 1 and the number of answers to a problem, {sampling.num_samples}; "
                "give another --k, or more --samples"
            )
    labels = [model.label for model in models]
    if baseline is not None and baseline not in labels:
        raise InputError(f"{baseline} is none of the models to compare with; choose {', '.join(labels)}")
    name, options = engine or default_engine(), options or EngineOptions()
    # It starts nothing yet, and says what is not installed or not its option.
    with open_engine(name, options):
        pass
    template = task.prompt_template
    plan = EvaluationPlan(
        task=task,
        problems=task.load(),
        template=template if chat is None else replace(template, chat=chat),
        models=tuple(models),
        sampling=sampling,
        engine=name,
        options=options,
        out_dir=Path(out_dir),
        ks=None if ks is None else tuple(ks),
        baseline=baseline or labels[0],
        overwrite=overwrite,
    )
    check_evaluation(plan.out_dir, plan.settings, overwrite=overwrite)
    return plan
