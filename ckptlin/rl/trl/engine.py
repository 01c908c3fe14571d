"""The engine of TRL: makes a trainer for each stretch of steps, and keeps nothing between them but the state.

Generation by ``generate`` runs anywhere; vLLM, FSDP and DeepSpeed need GPUs and ``accelerate launch``, see
docs/train.md.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from ckptlin.errors import CkptlinError, GradingError, InputError, MissingExtraError, TrainingStoppedError
from ckptlin.grading import open_grader
from ckptlin.problems import Problem, PromptTemplate, get_template, load_problems
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.quiet import quiet_transformers
from ckptlin.rl.config import DataConfig, TrainConfig
from ckptlin.rl.data_order import data_order
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.sampled_rewards import SampledRewards
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepListener

__all__ = ["TrlEngine"]

_PACKAGES = ("torch", "transformers", "accelerate", "trl", "datasets")


class TrlEngine:
    """Trains by TRL in this process, or in each of those that ``accelerate launch`` started.

    Parameters
    ----------
    progress : Progress
        Takes what graders found out of the ordinary.
    """

    name = "trl"

    def __init__(self, progress: Progress = NO_PROGRESS) -> None:
        self._progress = progress
        # Read once: every leg trains on the same problems.
        self._load = cache(_load)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self._processes.is_main_process)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._processes.wait_for_everyone()

    @property
    def _processes(self) -> Any:
        from accelerate import PartialState

        return PartialState()

    def check(self, config: TrainConfig) -> None:
        """Raise what would make training fail later; see `ckptlin.rl.engine.Engine`."""
        for package in _PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(f'engine `trl` needs {package}; pip install "ckptlin[train]"')
        if config.sampling.backend != "generate" and importlib.util.find_spec("vllm") is None:
            raise MissingExtraError(
                f"sampling.backend `{config.sampling.backend}` needs vllm; pip install vllm, or use `generate`"
            )
        from accelerate import PartialState

        from ckptlin.rl.trl.arguments import micro_batch
        from ckptlin.rl.trl.model import load_tokenizer

        if config.device == "cpu":
            # The first one made in a process decides for all.
            PartialState(cpu=True)
        _check_launch(config)
        micro_batch(config, num_processes=self._processes.num_processes, on_gpu=_on_gpu(config))
        tokenizer = load_tokenizer(config.model)
        problems = self._load(config.data, config.algorithm.spec.is_supervised)
        _check_lengths(config, tokenizer, problems)
        if not config.algorithm.spec.is_supervised:
            with open_grader(config.reward.grader, **config.reward.parameters) as grader:
                grader.check(problems)
                if config.data.held_out is not None:
                    grader.check(load_problems(config.data.held_out))

    def start(self, config: TrainConfig, run: RunDirectory) -> TrainState:
        """Write checkpoint 0 and the resume point of step 0."""
        from ckptlin.rl.trl.model import save_start

        if self.is_main:
            with _quiet():
                run.begin(partial(save_start, config.model))
        self.wait()
        written = run.latest()
        if written is None:
            raise InputError(f"{run.path} has no resume point; it must be on a disk that all processes share")
        return written

    def train(
        self, config: TrainConfig, state: TrainState, steps: int, *, run: RunDirectory, listener: StepListener
    ) -> TrainState:
        """Train a stretch of steps; see `ckptlin.rl.engine.Engine`."""
        from transformers import PrinterCallback

        from ckptlin.rl.trl.model import load_model, load_tokenizer
        from ckptlin.rl.trl.stretch import Stretch
        from ckptlin.rl.trl.trainers import Material, policy_trainer, supervised_trainer

        _check_resume_point(state, self._processes.num_processes)
        with _quiet():
            problems = self._load(config.data, config.algorithm.spec.is_supervised)
            start = state.step * config.batch
            material = Material(
                problems=problems,
                order=data_order(
                    len(problems), start=start, stop=start + steps * config.batch, seed=config.seed
                ),
                template=_template(config),
                model=load_model(state.path),
                tokenizer=load_tokenizer(state.path),
                steps=steps,
                num_processes=self._processes.num_processes,
                on_gpu=_on_gpu(config),
            )
            # What TRL loads as the reference of the KL term: where the run began, not where this stretch does.
            material.model.config._name_or_path = str(run.checkpoint(0))
            stretch = Stretch(config, state, steps, run=run, listener=listener)
            make = supervised_trainer if config.algorithm.spec.is_supervised else policy_trainer
            with make(config, material, run=run, callback=stretch, progress=self._progress) as trainer:
                trainer.remove_callback(PrinterCallback)
                stretch.trainer = trainer
                try:
                    trainer.train()
                except GradingError as error:
                    raise TrainingStoppedError(
                        f"step {stretch.state.step + 1} was not trained: {error}; {_stands_at(run)}"
                    ) from error
                finally:
                    # Trainer and callback hold each other; the next stretch needs the memory of both.
                    stretch.trainer = None
            del trainer, material
            _free_memory()
        if stretch.state.step != state.step + steps:
            raise CkptlinError(f"TRL ended at step {stretch.state.step} instead of {state.step + steps}")
        return stretch.state

    def sample(
        self, config: TrainConfig, weights: Path, problems: Sequence[Problem], *, num_samples: int, seed: int
    ) -> SampledRewards:
        """Answer problems by the model in a directory, and grade the answers."""
        from ckptlin.rl.trl.model import load_model, load_tokenizer
        from ckptlin.rl.trl.sample import sample_rewards

        with _quiet(), open_grader(config.reward.grader, **config.reward.parameters) as grader:
            tokenizer = load_tokenizer(weights)
            model = load_model(weights).eval()
            if _on_gpu(config):
                model = model.to("cuda")
            template = _template(config)
            prompts = [_prompt_text(template, problem, tokenizer) for problem in problems]
            return sample_rewards(
                model,
                tokenizer,
                prompts,
                problems,
                grader,
                sampling=config.sampling,
                num_samples=num_samples,
                seed=seed,
            )


def _load(data: DataConfig, is_supervised: bool) -> tuple[Problem, ...]:
    return load_problems(data.source, limit=data.limit, needs="solution" if is_supervised else None)


def _template(config: TrainConfig) -> PromptTemplate:
    return get_template(config.data.template, chat=config.data.chat)


def _prompt_text(template: PromptTemplate, problem: Problem, tokenizer: Any) -> str:
    prompt = template.prompt(problem)
    if isinstance(prompt, str):
        return prompt
    text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return text


def _check_lengths(config: TrainConfig, tokenizer: Any, problems: Sequence[Problem]) -> None:
    template = _template(config)
    if template.chat and not tokenizer.chat_template:
        raise InputError(
            f"prompt template `{template.name}` is for a chat, but the tokenizer of model `{config.model}` "
            "has no chat template; set data.chat=false"
        )
    texts = [_prompt_text(template, problem, tokenizer) for problem in problems]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    limit = config.sampling.max_prompt_tokens
    if lengths[longest] > limit:
        num_over = sum(length > limit for length in lengths)
        raise InputError(
            f"{num_over} of {len(problems)} prompts exceed sampling.max_prompt_tokens ({limit}); the longest, "
            f"problem `{problems[longest].id}`, has {lengths[longest]} tokens; raise the limit or remove them"
        )


def _check_launch(config: TrainConfig) -> None:
    """Raise `InputError` for what the way of launching, or of drawing answers, has no room for."""
    from accelerate.utils import parse_flag_from_env

    is_deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    is_sharded = is_deepspeed or parse_flag_from_env("ACCELERATE_USE_FSDP")
    has_legs = config.extra is not None or bool(config.optimizer.reset_every)
    if is_deepspeed and has_legs:
        raise InputError(
            "RL-Extra and optimizer.reset_every do not run under DeepSpeed, which keeps the float32 weights in "
            "partitions of its own, where a jump cannot reach them; launch with FSDP instead"
        )
    if is_sharded and config.log.kl_every:
        raise InputError(
            "the starting model that log.kl_every compares with is not shared out among processes; leave it "
            "out under FSDP and DeepSpeed"
        )
    if has_legs and config.sampling.backend != "generate":
        raise InputError(
            f"RL-Extra and optimizer.reset_every make a trainer for each leg, which was never tried with "
            f"sampling.backend `{config.sampling.backend}`; use `generate`"
        )


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_resume_point(state: TrainState, num_processes: int) -> None:
    """Raise `InputError` if training cannot go on exactly: weights saved for analysis alone are not enough."""
    if state.step == 0:
        return
    names = {path.name for path in state.path.iterdir()}
    num_random = sum(name.startswith("rng_state") for name in names)
    if num_random not in (0, num_processes):
        raise InputError(
            f"{state.path} was written by {num_random} processes, and there are {num_processes} now, which "
            f"would train another run; launch {num_random}, or start over with --overwrite"
        )
    lacking = [] if num_random else ["random numbers"]
    # transformers takes neither of the two without the other, and says nothing.
    has_optimizer = any(name.startswith(("optimizer", "global_step")) for name in names)
    if not state.fresh_optimizer and not has_optimizer:
        lacking.append("optimizer")
    if "scheduler.pt" not in names and not any(name.startswith("global_step") for name in names):
        lacking.append("schedule")
    if lacking:
        raise InputError(
            f"{state.path} is no resume point: it lacks the state of {' and '.join(lacking)}, without which "
            "training would go elsewhere; start over with --overwrite, or give it to a new run as a model"
        )


def _stands_at(run: RunDirectory) -> str:
    state = run.latest()
    step = 0 if state is None else state.step
    return f"{run.path} stands at step {step}, and goes on from there when the same command is given again"


def _on_gpu(config: TrainConfig) -> bool:
    import torch

    return config.device != "cpu" and torch.cuda.is_available()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers and TRL tell of themselves; errors still come through."""
    level = logging.getLogger("trl").level
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(trl|transformers|torch|accelerate|datasets)\b")
            yield
    finally:
        logging.getLogger("trl").setLevel(level)
