"""The trainers of a stretch of steps: TRL's, with our data, rewards and order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckptlin.grading import Grader, open_grader
from ckptlin.problems import Problem, PromptTemplate
from ckptlin.progress import Progress
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.trl.arguments import grpo_arguments, sft_arguments
from ckptlin.rl.trl.library import load_trl
from ckptlin.rl.trl.model import load_model
from ckptlin.rl.trl.sample import completions_of, graded

__all__ = ["Material", "policy_trainer", "supervised_trainer"]


@dataclass(frozen=True)
class Material:
    """What a stretch of steps is made of.

    Attributes
    ----------
    problems : tuple of Problem
    order : numpy.ndarray
        ``(steps * batch,) int64``: the problem at each position of the stretch.
    template : PromptTemplate
    model, tokenizer : transformers objects
    steps : int
    num_processes : int
    on_gpu : bool
    """

    problems: tuple[Problem, ...]
    order: Any
    template: PromptTemplate
    model: Any
    tokenizer: Any
    steps: int
    num_processes: int
    on_gpu: bool

    def rows(self, **columns: Sequence[Any]) -> Any:
        """Return a data set of the prompts and more columns, in the order of the stretch."""
        from datasets import Dataset

        prompts = [self.template.prompt(problem) for problem in self.problems]
        return Dataset.from_dict({"prompt": prompts, **columns}).select(self.order)

    @property
    def sizes(self) -> dict[str, Any]:
        """What the arguments of a trainer depend on besides the configuration."""
        return {"steps": self.steps, "num_processes": self.num_processes, "on_gpu": self.on_gpu}


@contextmanager
def policy_trainer(
    config: TrainConfig,
    material: Material,
    *,
    run: RunDirectory,
    callback: Any,
    progress: Progress,
) -> Iterator[Any]:
    """Make a trainer of GRPO's family, and close its grader afterwards.

    Parameters
    ----------
    callback : Stretch
        Asked whether a step's divergence is due.
    progress : Progress
        Takes what the grader found out of the ordinary.
    """
    load_trl(with_vllm=config.sampling.backend != "generate")
    from trl import GRPOConfig

    from ckptlin.rl.trl.grpo import PolicyTrainer

    with open_grader(config.reward.grader, **config.reward.parameters) as grader:
        yield PolicyTrainer(
            model=material.model,
            args=GRPOConfig(output_dir=str(run.path), **grpo_arguments(config, **material.sizes)),
            processing_class=material.tokenizer,
            train_dataset=material.rows(index=range(len(material.problems))),
            reward_funcs=_reward(grader, material),
            callbacks=[callback],
            algorithm=config.algorithm.spec,
            total_updates=config.steps * config.updates_per_step,
            start_model=_start_model(run, callback),
            kl_due=lambda: callback.kl_due,
        )
        for note in grader.notes:
            progress.note(note)


@contextmanager
def supervised_trainer(
    config: TrainConfig,
    material: Material,
    *,
    run: RunDirectory,
    callback: Any,
    progress: Progress,
) -> Iterator[Any]:
    """Make a trainer that learns solutions."""
    load_trl(with_vllm=False)
    from trl import SFTConfig

    from ckptlin.rl.trl.sft import SupervisedTrainer

    solutions: list[Any] = [problem.solution or "" for problem in material.problems]
    if material.template.chat:
        solutions = [[{"role": "assistant", "content": text}] for text in solutions]
    yield SupervisedTrainer(
        model=material.model,
        args=SFTConfig(output_dir=str(run.path), **sft_arguments(config, **material.sizes)),
        processing_class=material.tokenizer,
        train_dataset=material.rows(completion=solutions),
        callbacks=[callback],
        total_updates=config.steps * config.updates_per_step,
    )


def _reward(grader: Grader, material: Material) -> Callable[..., list[float]]:
    """Return a reward function as TRL calls it."""

    def reward(*, completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float]:
        asked = [material.problems[i] for i in index]
        return graded(grader, completions_of(completion_ids, material.tokenizer), asked)

    return reward


def _start_model(run: RunDirectory, callback: Any) -> Callable[[], Any]:
    """Return a function that gives the model of step 0, loaded when it is first asked for."""
    loaded: list[Any] = []

    def start_model() -> Any:
        if not loaded:
            loaded.append(load_model(run.checkpoint(0)).eval().to(callback.trainer.accelerator.device))
        return loaded[0]

    return start_model
