"""``ckptlin train``."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import group, json_option, not_empty, print_json, quiet_option
from ckptlin_cli.step_progress import StepProgress
from ckptlin_cli.tables import duration, echo_pairs

if TYPE_CHECKING:
    from ckptlin.rl.algorithms import Algorithm
    from ckptlin.rl.config import TrainConfig
    from ckptlin.rl.plan import TrainPlan
    from ckptlin.rl.trainer import TrainResult

__all__ = ["command"]

# Options by the setting that they stand for; without a type they are texts.
_COMMON: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--model", "model", {"metavar": "MODEL", "help": "Directory or hub name of the model to start from."}),
    (
        "--data",
        "data.source",
        {"metavar": "DATA", "help": "Problems: a .jsonl or .parquet file, a hub name, or sums:train."},
    ),
    ("--steps", "steps", {"type": int, "help": "Real steps, each one batch of rollouts.  [default: 1000]"}),
    ("--batch", "batch", {"type": int, "help": "Prompts of a step.  [default: 128]"}),
    ("--mini-batch", "mini_batch", {"type": int, "help": "Prompts of an update.  [default: 64]"}),
    ("--rollouts", "sampling.rollouts", {"type": int, "help": "Answers to each prompt.  [default: 16]"}),
    (
        "--max-tokens",
        "sampling.max_completion_tokens",
        {"type": int, "help": "Length limit of an answer.  [default: 16384]"},
    ),
    ("--lr", "optimizer.lr", {"type": float, "help": "Learning rate.  [default: 1e-06]"}),
    ("--save-every", "save_every", {"type": int, "help": "Steps between checkpoints.  [default: 50]"}),
    ("--seed", "seed", {"type": int, "help": "Of the order of the data, and of sampling.  [default: 0]"}),
    (
        "--algorithm",
        "algorithm.name",
        {"metavar": "NAME", "help": "See `ckptlin train algorithms`.  [default: grpo]"},
    ),
    (
        "--grader",
        "reward.grader",
        {"metavar": "NAME", "help": "exact, math, code, or package.module:function.  [default: math]"},
    ),
    ("--engine", "engine", {"metavar": "NAME", "help": "trl or verl.  [default: trl]"}),
    ("--device", "device", {"metavar": "NAME", "help": "auto or cpu.  [default: auto]"}),
)
_EXTRA: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("-m", "extra.m", {"type": int, "help": "Real steps of a leg.  [default: 100]"}),
    ("-n", "extra.n", {"type": int, "help": "Virtual steps of the jump after it.  [default: 100]"}),
    (
        "--method",
        "extra.method",
        {"help": "What predicts where a jump lands: auto, or as of `ckptlin methods`.  [default: two-point]"},
    ),
    (
        "--optimizer",
        "extra.optimizer",
        {"metavar": "reset|keep", "help": "What becomes of its state at a jump.  [default: reset]"},
    ),
    (
        "--guard/--no-guard",
        "extra.guard.enabled",
        {
            "default": None,
            "help": "Take back a jump that loses reward on held-out problems.  [default: no-guard]",
        },
    ),
    (
        "--held-out",
        "data.held_out",
        {"metavar": "DATA", "help": "Problems that the guard measures on, as of --data."},
    ),
)


def _setting_options(*tables: tuple[tuple[str, str, dict[str, Any]], ...]) -> Callable[[Any], Any]:
    """Options that are handed on as ``{setting: value}``, those that were given alone."""

    def decorate(function: Any) -> Any:
        for flag, setting, options in reversed([row for table in tables for row in table]):
            function = click.option(flag, setting.replace(".", "__"), **options)(function)
        return function

    return decorate


def _place_options(function: Any) -> Any:
    """``--config`` and ``--out``."""
    function = click.option(
        "--out",
        "out_dir",
        type=click.Path(),
        required=True,
        metavar="RUN",
        callback=not_empty,
        help="Directory of the run; one that is there is gone on with.",
    )(function)
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings as YAML, see docs/train.md; the options below come after it.",
    )(function)


def _run_options(function: Any) -> Any:
    """``--set``, ``--overwrite``, ``--dry-run``, ``--json`` and ``--quiet``."""
    function = json_option(quiet_option(function))
    function = click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")(function)
    function = click.option("--overwrite", is_flag=True, help="Start over if a run is there.")(function)
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any setting, such as optimizer.schedule=linear, after all others; may be repeated.",
    )(function)


@make_command(
    "train grpo",
    examples=[
        "ckptlin train grpo --config run.yaml --out ./grpo --dry-run",
        "ckptlin train grpo --model ./base --data sums:train --grader exact --max-tokens 24 --batch 16 "
        "--mini-batch 8 --rollouts 8 --lr 1e-5 --steps 100 --save-every 10 --out ./grpo",
        "ckptlin train grpo --config run.yaml --out ./gspo --algorithm gspo --set optimizer.schedule=linear",
    ],
)
@_place_options
@_setting_options(_COMMON)
@_run_options
def grpo(**given: Any) -> None:
    """Train a model by GRPO, or another algorithm of its family, on problems whose answers can be checked.

    Writes checkpoints that `ckptlin ingest RUN` reads, a log of steps, and resume points: the same command
    again goes on where a run stopped.  Needs the extra `train`.
    """
    _train("train grpo", given, with_extra=False)


@make_command(
    "train rl-extra",
    examples=[
        "ckptlin train rl-extra --config run.yaml -m 20 -n 20 --save-every 10 --out ./extra --dry-run",
        "ckptlin train rl-extra --config run.yaml -m 20 -n 20 --save-every 5 --method auto --guard "
        "--held-out sums:test --out ./extra",
    ],
)
@_place_options
@_setting_options(_EXTRA, _COMMON)
@_run_options
def rl_extra(**given: Any) -> None:
    """Train by RL-Extra: m steps of reinforcement learning, a jump of n by extrapolation, and again.

    Checkpoints are named by virtual steps, those trained and those jumped over together; --steps counts real
    ones.  Otherwise as `ckptlin train grpo`.
    """
    _train("train rl-extra", given, with_extra=True)


@make_command("train algorithms", examples=["ckptlin train algorithms", "ckptlin train algorithms --json"])
@json_option
def algorithms(as_json: bool) -> None:
    """List the algorithms that --algorithm takes."""
    from dataclasses import asdict

    from ckptlin.rl.algorithms import ALGORITHMS

    if as_json:
        print_json({"algorithms": [asdict(algorithm) for algorithm in ALGORITHMS.values()]})
        return
    echo_pairs([(algorithm.name, _algorithm(algorithm)) for algorithm in ALGORITHMS.values()])


def _algorithm(algorithm: "Algorithm") -> str:
    if algorithm.is_supervised:
        return algorithm.description
    clip = f"clips at −{algorithm.clip_low:g} and +{algorithm.clip_high:g}"
    ratio = f", a ratio for each {algorithm.ratio}" if algorithm.ratio == "sequence" else ""
    return f"{algorithm.description} ({clip}{ratio}; {algorithm.source})"


@make_command(
    "train launch-config",
    examples=["ckptlin train launch-config", "ckptlin train launch-config fsdp"],
)
@click.argument("name", required=False)
def launch_config(name: str | None) -> None:
    """Print where the configuration NAME of `accelerate launch` lies, or list those that are shipped.

    accelerate launch --config_file "$(ckptlin train launch-config fsdp)" "$(which ckptlin)" train grpo ...
    """
    from ckptlin.rl.launch import LAUNCH_CONFIGS
    from ckptlin.rl.launch import launch_config as path_of

    if name is not None:
        click.echo(str(path_of(name)))
        return
    echo_pairs(list(LAUNCH_CONFIGS.items()))


command = group(
    "train",
    "Train by reinforcement learning with verifiable rewards, plainly or by RL-Extra.",
    [grpo, rl_extra, algorithms, launch_config],
    examples=[
        "ckptlin train grpo --config run.yaml --out ./grpo --dry-run",
        "ckptlin train algorithms",
    ],
)


def _train(name: str, given: dict[str, Any], *, with_extra: bool) -> None:
    config_path, overrides, out_dir, overwrite, dry_run, as_json, quiet = (
        given.pop(key)
        for key in ("config_path", "overrides", "out_dir", "overwrite", "dry_run", "as_json", "quiet")
    )
    from ckptlin.rl.config_file import load_config
    from ckptlin.rl.plan import plan_training

    out_dir = Path(out_dir)
    settings = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    config = load_config(config_path, settings=settings, overrides=overrides, with_extra=with_extra)
    plan = plan_training(config, out_dir, overwrite=overwrite)
    if dry_run:
        if as_json:
            print_json(plan.to_dict())
        else:
            _show_plan(plan)
        return
    plan.check_disk()
    # Of the processes that `accelerate launch` starts one speaks for all.
    is_main = int(os.environ.get("RANK", "0")) == 0
    try:
        result = _run(config, plan, overwrite=overwrite, is_quiet=quiet or not is_main)
    except KeyboardInterrupt:
        if is_main:
            click.echo(f"ckptlin {name}: {_interrupted(out_dir)}", err=True)
        sys.exit(130)
    if not is_main:
        return
    if as_json:
        print_json(result.to_dict())
    else:
        _show_result(result)


def _run(config: "TrainConfig", plan: "TrainPlan", *, overwrite: bool, is_quiet: bool) -> "TrainResult":
    with StepProgress(config.steps, is_quiet=is_quiet) as progress:
        if plan.resumes_at is not None and not is_quiet:
            what = (
                f"goes on from step {plan.resumes_at}" if plan.steps else f"has all of its {config.steps} steps"
            )
            progress.note(f"{plan.out_dir} {what}")
        from ckptlin.rl.trainer import train

        return train(config, plan.out_dir, overwrite=overwrite, listeners=[progress], progress=progress)


def _interrupted(out_dir: Path) -> str:
    from ckptlin.rl.run_directory import RunDirectory

    run = RunDirectory(out_dir, {})
    state = run.latest()
    if state is None:
        return f"stopped by Ctrl-C before {out_dir} had a checkpoint; the same command begins again"
    return (
        f"stopped by Ctrl-C; {run.checkpoint(state.virtual_step)} stands, and the same command goes on from "
        f"step {state.step}"
    )


def _show_plan(plan: "TrainPlan") -> None:
    from ckptlin.store.store import describe_steps

    config = plan.config
    what = config.algorithm.name
    if config.extra is not None:
        what += (
            f" with RL-Extra, {config.extra.m} steps and a jump of {config.extra.n} by {config.extra.method}"
        )
    from_step = "" if plan.resumes_at is None else f", going on from step {plan.resumes_at}"
    sizes = "the model's size is not known before it is downloaded"
    if plan.checkpoint_bytes is not None and plan.optimizer_bytes is not None and plan.bytes_out is not None:
        sizes = (
            f"{format_bytes(plan.bytes_out)}: {format_bytes(plan.checkpoint_bytes)} each, "
            f"{format_bytes(plan.optimizer_bytes)} of optimizer in a resume point; "
            f"{format_bytes(plan.free_bytes)} free"
        )
    echo_pairs(
        [
            ("would train", f"{config.model} by {what}, {plan.steps} steps{from_step}"),
            ("a step", _describe_step(config)),
            ("in all", f"{plan.updates} updates, {plan.answers} answers"),
            ("checkpoints", describe_steps(plan.checkpoints)),
            ("would write", sizes),
            ("to", f"{plan.out_dir}: checkpoint-N, resume, log.csv, config.yaml, ckptlin-train.json"),
        ]
    )


def _describe_step(config: "TrainConfig") -> str:
    num = config.updates_per_step
    updates = f"{num} update{'' if num == 1 else 's'}"
    if config.algorithm.spec.is_supervised:
        return f"{config.batch} problems, {updates}"
    return f"{config.batch} prompts × {config.sampling.rollouts} answers, {updates}"


def _show_result(result: "TrainResult") -> None:
    from ckptlin.rl.step_log import read_log

    state = result.state
    pairs = [("run", str(result.out_dir)), ("steps", f"{state.step}, {state.updates} updates")]
    if result.jumps or result.jumps_undone:
        undone = f", {len(result.jumps_undone)} undone" if result.jumps_undone else ""
        pairs.append(("jumps", f"{len(result.jumps)}{undone}, to virtual step {state.virtual_step}"))
    rewards = [row.reward for row in read_log(result.out_dir / "log.csv") if row.reward is not None]
    if rewards:
        window = max(1, min(50, len(rewards) // 2))
        first, last = (sum(part) / window for part in (rewards[:window], rewards[-window:]))
        pairs.append(("reward", f"{first:.3f} in the first {window} steps, {last:.3f} in the last"))
    pairs += [("tokens", f"{state.tokens}"), ("time", duration(state.elapsed_s))]
    pairs.append(("next", f"ckptlin ingest {result.out_dir} {result.out_dir}.store"))
    echo_pairs(pairs)
