"""The engine of verl: launches its trainer for each stretch of steps, and watches over it.

::

    RUN/verl.log           what verl and Ray write, launch after launch
    RUN/verl/              of the launch that is under way: prompts, settings, figures, verl's own checkpoints
    RUN/resume/N-P/verl/   shards of weights and optimizer, which verl goes on from

A launch begins either as a new run of verl's, from the weights of a checkpoint in float32 and with a new
optimizer, or from the shards of the resume point.  RUN has to be on a disk that all nodes share.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ckptlin.errors import CkptlinError, InputError, MissingExtraError, TrainingStoppedError
from ckptlin.grading import open_grader
from ckptlin.problems import Problem, load_problems
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.quiet import quiet_transformers
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.data_order import data_order
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.sampled_rewards import SampledRewards
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepListener
from ckptlin.rl.verl.hydra import hydra_value
from ckptlin.rl.verl.limits import check_supported
from ckptlin.rl.verl.metrics import MetricsFile
from ckptlin.rl.verl.overrides import sampling_overrides, verl_overrides
from ckptlin.rl.verl.process import LoggedProcess
from ckptlin.rl.verl.prompts import chat_template_of, check_prompts, load, write_prompts
from ckptlin.rl.verl.reward import read_reward_error, write_grader
from ckptlin.rl.verl.stretch import SHARDS_NAME, Stretch

__all__ = ["VerlEngine"]

_VERSION = "0.9."
# What verl's trainer imports and does not bring along: the rollouts, and what its logger writes JSON with.
_PACKAGES = ("ray", "vllm", "transfer_queue", "orjson")
# It would send the figures of the steps elsewhere.
_NOT_HANDED_ON = ("VERL_FILE_LOGGER_PATH",)
_NUM_LINES = 20
_GOES_ON = (
    "the run stands at its last resume point, and goes on from there when the same command is given again"
)


class VerlEngine:
    """Trains by verl, on the Ray cluster that is there, or on one that Ray makes of this machine.

    Parameters
    ----------
    command : sequence of str, optional
        Program that takes the Hydra overrides; by default verl's trainer on this Python.
    poll_s : float
        Seconds between two looks at what verl has written.
    progress : Progress
        Is told when verl is started.
    """

    name = "verl"

    def __init__(
        self,
        *,
        command: Sequence[str] | None = None,
        poll_s: float = 1.0,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        self._is_verl = command is None
        self._command = tuple(command or (sys.executable, "-m", "verl.trainer.main_ppo"))
        self._poll_s = poll_s
        self._progress = progress

    @property
    def is_main(self) -> bool:
        """True: verl's processes are its own."""
        return True

    def wait(self) -> None:
        """Return at once: there is no other process to wait for."""

    def check(self, config: TrainConfig) -> None:
        """Raise what would make training fail later; see `ckptlin.rl.engine.Engine`."""
        check_supported(config)
        if self._is_verl:
            _check_installed()
            _check_gpus(config)
        from ckptlin.rl.trl.model import load_tokenizer

        tokenizer = load_tokenizer(config.model)
        problems = load(config)
        check_prompts(config, tokenizer, problems)
        with open_grader(config.reward.grader, **config.reward.parameters) as grader:
            grader.check(problems)
            if config.data.held_out is not None:
                grader.check(load_problems(config.data.held_out))

    def start(self, config: TrainConfig, run: RunDirectory) -> TrainState:
        """Write checkpoint 0 and the resume point of step 0."""
        from ckptlin.rl.trl.model import save_start

        with quiet_transformers():
            return run.begin(partial(save_start, config.model))

    def train(
        self, config: TrainConfig, state: TrainState, steps: int, *, run: RunDirectory, listener: StepListener
    ) -> TrainState:
        """Train a stretch of steps by one launch of verl; see `ckptlin.rl.engine.Engine`."""
        if config.optimizer.schedule != "constant" and state.step + steps != config.steps:
            raise InputError(
                f"engine `verl` spans the schedule `{config.optimizer.schedule}` over a launch, so that the "
                "run has to be trained in one; set optimizer.schedule=constant"
            )
        problems = load(config)
        start = state.step * config.batch
        order = data_order(len(problems), start=start, stop=start + steps * config.batch, seed=config.seed)
        with _work_directory(run.path / "verl") as work:
            saved = work / "checkpoints"
            # A new optimizer is a new run for verl; otherwise it counts the steps of the leg.
            first = 0 if state.fresh_optimizer else state.leg_steps
            overrides = verl_overrides(
                config,
                train_files=[_prompts(work, config, problems, order)],
                out_dir=saved,
                total_steps=first + steps,
                model_path=run.checkpoint(state.virtual_step if state.fresh_optimizer else 0).absolute(),
                resume_from=None if state.fresh_optimizer else _shards(work, state),
                # Wherever verl starts to count, the steps at which the leg saves are among these.
                save_every=math.gcd(config.save_every, state.leg_steps - first),
                chat_template=_chat_template(config, run.checkpoint(0)),
                rollout_seed=_seed(config.seed, state.step),
            )
            stretch = Stretch(config, state, steps, run=run, listener=listener, saved=saved, first=first)
            metrics = MetricsFile(work / "metrics.jsonl")

            def look() -> None:
                for number, figures in metrics.read():
                    stretch.take_step(number, figures)

            self._run(
                overrides,
                work=work,
                log=run.path / "verl.log",
                look=look,
                what=lambda: f"step {stretch.state.step + 1} was not trained",
            )
        if stretch.state.step != state.step + steps:
            raise CkptlinError(
                f"verl ended at step {stretch.state.step}, not {state.step + steps}; see {run.path}/verl.log"
            )
        return stretch.state

    def sample(
        self, config: TrainConfig, weights: Path, problems: Sequence[Problem], *, num_samples: int, seed: int
    ) -> SampledRewards:
        """Answer problems by the model in a directory, and grade the answers: verl validates, no more.

        vLLM's random numbers go with the seed, but not with the prompt: two models answer the same problems,
        and not by the same draws.
        """
        # A name that is cleared away with other unfinished things, should this be killed.
        with _work_directory(weights.parent / ".verl-answers.partial") as work:
            answers = work / "answers"
            overrides = sampling_overrides(
                config,
                files=[_prompts(work, config, problems, range(len(problems)))],
                out_dir=work / "checkpoints",
                answers_dir=answers,
                model_path=weights.absolute(),
                num_samples=num_samples,
                seed=_seed(seed, 0),
                chat_template=_chat_template(config, weights),
            )
            self._run(
                overrides,
                work=work,
                log=weights.parent / "verl.log",
                look=lambda: None,
                what=lambda: f"the model {weights} was not measured on held-out problems",
            )
            return _read_answers(answers / "0.jsonl", len(problems), num_samples)

    def _run(
        self,
        overrides: Sequence[str],
        *,
        work: Path,
        log: Path,
        look: Callable[[], None],
        what: Callable[[], str],
    ) -> None:
        """Run verl to its end, and look again and again at what it has written.

        Raises
        ------
        TrainingStoppedError
            If it fails, or a reward could not be given; verl and all that it started are then gone.
        """
        # Hydra's own log would lie in whatever directory this was started in.
        command = [*self._command, *overrides, f"hydra.run.dir={hydra_value(str(work / 'hydra'))}"]
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
        self._progress.note(f"verl is started, which takes some minutes; it writes to {log}")
        with LoggedProcess(command, log=log, environment=environment) as process:
            code = None
            while code is None:
                code = process.wait(self._poll_s)
                look()
                error = read_reward_error(work)
                if error is not None:
                    raise TrainingStoppedError(f"{what()}: {error}; {_GOES_ON}")
        if code:
            lines = "\n".join(process.last_lines(_NUM_LINES))
            raise TrainingStoppedError(
                f"{what()}: verl ended with status {code}; {_GOES_ON}; the last lines of {log} are\n{lines}"
            )


def _check_installed() -> None:
    hint = (
        "engine `verl` runs in verl's environment: install verl==0.9.1 and the vllm it asks for, then ckptlin"
    )
    try:
        version = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(f"verl is not installed; {hint}") from None
    if not version.startswith(_VERSION):
        raise MissingExtraError(f"verl {version} is installed, but its settings are known for 0.9 only; {hint}")
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"verl's trainer needs {package}, which is not installed; {hint}")


def _check_gpus(config: TrainConfig) -> None:
    import torch

    there, asked = torch.cuda.device_count(), config.verl.gpus_per_node
    # Of a cluster's other nodes nothing is known here.
    if config.verl.nodes == 1 and there < asked:
        raise InputError(
            f"verl.gpus_per_node is {asked}, but this machine has {there} GPUs, and verl would wait for more"
        )


@contextmanager
def _work_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory, which is gone afterwards; what an earlier launch left there goes first."""
    path = path.absolute()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _prompts(work: Path, config: TrainConfig, problems: Sequence[Problem], order: Iterable[int]) -> Path:
    """Write down what a launch reads: the prompts, and for the reward workers the grader."""
    write_grader(work, config.reward)
    path = work / "prompts.parquet"
    write_prompts(path, config, problems, order)
    return path


def _shards(work: Path, state: TrainState) -> Path:
    """Give the shards of a resume point the name from which verl reads the step that it goes on after."""
    shards = state.path.absolute() / SHARDS_NAME
    if not shards.is_dir():
        raise InputError(
            f"{state.path} has no shards of verl's; it was written by another engine, so use that one"
        )
    link = work / f"global_step_{state.leg_steps}"
    link.symlink_to(shards)
    return link


def _chat_template(config: TrainConfig, model: Path) -> str | None:
    from ckptlin.rl.trl.model import load_tokenizer

    return chat_template_of(config, load_tokenizer(model))


def _seed(seed: int, step: int) -> int:
    """Return a seed of vLLM's for a launch, so that no two of a run draw the same numbers."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)


def _read_answers(path: Path, num_problems: int, num_samples: int) -> SampledRewards:
    rewards: list[list[float]] = [[] for _ in range(num_problems)]
    tokens = 0
    if path.is_file():
        for line in path.read_text().splitlines():
            answer = json.loads(line)
            rewards[answer["index"]].append(float(answer["score"]))
            tokens += int(answer["tokens"])
    for index, scores in enumerate(rewards):
        if len(scores) != num_samples:
            raise CkptlinError(
                f"verl wrote {len(scores)} answers to held-out problem {index}, not {num_samples}; see verl.log"
            )
    return SampledRewards(np.array(rewards, np.float64).reshape(num_problems, num_samples), tokens)
