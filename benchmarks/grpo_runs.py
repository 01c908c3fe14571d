"""Small real GRPO runs: what the prediction methods are judged on.

    python -m benchmarks.grpo_runs /scratch/runs --setting grpo --seed 0

pretrains a Qwen2 model on sums until it writes about a quarter of the answers without a mistake, sampled at
temperature 1, and goes on with ckptlin's trainer, which is TRL's ``GRPOTrainer``: the reward is 1 for an answer
without a mistake and 0 otherwise. It writes ``grpo-0/checkpoint-0``, ``checkpoint-10``, ... in float32, as the
optimizer holds them, and ``grpo-0-bf16/``, the same rounded to bfloat16, which is what most trainers save;
beside them ``run.json`` with settings, versions and rewards. A run takes one to three minutes of one core.

It needs the ``train`` extra, at the versions of ``requirements/lock.txt``. ``supervised`` learns solutions, for
contrast. One thread computes, as in `ckptlin.demo.isolation`.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.report import versions
from ckptlin.demo.corpus import longest_completion
from ckptlin.demo.evaluation import evaluate
from ckptlin.demo.isolation import undisturbed
from ckptlin.demo.make_base import RECORD_NAME, BaseSettings, make_base
from ckptlin.problems import Problem, draw_sums
from ckptlin.rl.config import (
    AlgorithmConfig,
    DataConfig,
    LogConfig,
    OptimizerConfig,
    RewardConfig,
    SamplingConfig,
    StopConfig,
    TrainConfig,
)
from ckptlin.rl.step_log import read_log
from ckptlin.rl.trainer import train

__all__ = ["SETTINGS", "Setting", "make_grpo_run", "round_run", "share_right"]

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy")
_HELD_OUT = 1_000


@dataclass(frozen=True)
class Setting:
    """A way to train.

    Attributes
    ----------
    algorithm : str
        Of `ckptlin.rl.algorithms`.
    clip : float or None
        Clip range of the ratios to either side, where it is not the algorithm's own.
    num_prompts, num_rollouts : int
        Different sums a step, and answers sampled to each.
    mini_batches : int
        Optimizer steps that one batch of answers is split over; 1 is on-policy.
    dense : bool
        Reward the share of right totals instead of a wholly right answer.
    """

    algorithm: str = "grpo"
    lr: float = 1e-5
    optimizer: str = "adamw"
    clip: float | None = None
    num_prompts: int = 32
    num_rollouts: int = 8
    mini_batches: int = 1
    hidden_size: int = 64
    num_layers: int = 3
    num_terms: int = 4
    pretrain_steps: int = 300
    dense: bool = False


_GRPO = Setting()
SETTINGS = {
    "grpo": _GRPO,
    "fast": replace(_GRPO, lr=5e-5),
    "small-batch": replace(_GRPO, num_prompts=16),
    "large-batch": replace(_GRPO, num_prompts=64),
    "dense": replace(_GRPO, dense=True),
    "dr-grpo": replace(_GRPO, algorithm="dr_grpo"),
    "gspo": replace(_GRPO, algorithm="gspo", mini_batches=4, clip=3e-3),
    "sgd": replace(_GRPO, optimizer="sgd", lr=0.005),
    "wide": replace(_GRPO, hidden_size=128, num_layers=2),
    "supervised": replace(_GRPO, algorithm="sft", num_prompts=128, lr=3e-5),
}


def share_right(completion: str, problem: Problem) -> float:
    """Return the share of the running totals that are right, each at its place.

    Examples
    --------
    >>> from ckptlin.problems import make_sum
    >>> problem = make_sum((3, 7, 5))
    >>> share_right("10;15", problem), share_right("10;16", problem), share_right("", problem)
    (1.0, 0.5, 0.0)
    """
    right = (problem.answer or "").split(";")
    given = completion.split(";")
    return sum(a == b for a, b in zip(right, given, strict=False)) / len(right)


def make_grpo_run(
    root: Path, name: str, setting: Setting, *, seed: int = 0, steps: int = 240, every: int = 10
) -> dict[str, Any]:
    """Train a run, save it as ``root/name-seed`` and, rounded, ``root/name-seed-bf16``; return its record.

    Parameters
    ----------
    root : Path
        Bases and problems are kept there too, so that settings of one seed start from the same model.
    seed : int
        Of the model, the order of the problems and the sampling.
    """
    run_dir = root / f"{name}-{seed}"
    root.mkdir(parents=True, exist_ok=True)
    held_out = draw_sums(split="test", num_terms=setting.num_terms)[:_HELD_OUT]
    start = time.perf_counter()
    base = _base(root, setting, seed)
    config = _config(setting, base, _problems(root, setting.num_terms), seed=seed, steps=steps, every=every)
    with undisturbed(seed):
        train(config, run_dir, overwrite=True)
    rewards = [row.reward for row in read_log(run_dir / "log.csv") if row.reward is not None]
    record = {
        "setting": asdict(setting) | {"name": name, "seed": seed, "steps": steps, "every": every},
        "num_params": json.loads((base / RECORD_NAME).read_text())["num_params"],
        "versions": versions(_PACKAGES),
        "elapsed_s": round(time.perf_counter() - start, 1),
        **{
            which: evaluate(run_dir / f"checkpoint-{step}", held_out, num_samples=2, seed=seed).to_dict()
            for which, step in (("first", 0), ("last", steps))
        },
        "rewards": [round(reward, 4) for reward in rewards],
    }
    round_run(run_dir, root / f"{name}-{seed}-bf16")
    (run_dir / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def round_run(run_dir: Path, out_dir: Path) -> None:
    """Copy a run's weights rounded to bfloat16, to the nearest and half to even, as torch rounds."""
    from safetensors.numpy import load_file, save_file

    shutil.rmtree(out_dir, ignore_errors=True)
    for checkpoint in run_dir.glob("checkpoint-*"):
        target = out_dir / checkpoint.name
        target.mkdir(parents=True)
        weights = load_file(checkpoint / "model.safetensors")
        rounded = {tensor: values.astype(ml_dtypes.bfloat16) for tensor, values in weights.items()}
        save_file(rounded, target / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((checkpoint / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2) + "\n")


def _base(root: Path, setting: Setting, seed: int) -> Path:
    """Return the pretrained model of a seed and size, trained if it is not there yet."""
    shape = f"{setting.hidden_size}x{setting.num_layers}"
    path = root / f"base-{setting.num_terms}-{setting.pretrain_steps}-{shape}-{seed}"
    if not (path / RECORD_NAME).is_file():
        shutil.rmtree(path, ignore_errors=True)
        # Without mistakes in what it learns: it makes its own, for it learns briefly.
        settings = BaseSettings(
            num_terms=setting.num_terms,
            hidden_size=setting.hidden_size,
            num_layers=setting.num_layers,
            error_rate=0.0,
            steps=setting.pretrain_steps,
            batch=64,
            warmup_steps=30,
        )
        make_base(path, seed=seed, settings=settings)
    return path


def _problems(root: Path, num_terms: int) -> Path:
    """Return a file with the train split of the sums."""
    path = root / f"sums-{num_terms}.jsonl"
    rows = (json.dumps(problem.to_dict()) for problem in draw_sums(split="train", num_terms=num_terms))
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def _config(setting: Setting, base: Path, problems: Path, *, seed: int, steps: int, every: int) -> TrainConfig:
    return TrainConfig(
        model=str(base),
        steps=steps,
        batch=setting.num_prompts,
        mini_batch=setting.num_prompts // setting.mini_batches,
        save_every=every,
        seed=seed,
        device="cpu",
        data=DataConfig(str(problems)),
        reward=RewardConfig("benchmarks.grpo_runs:share_right" if setting.dense else "exact"),
        algorithm=AlgorithmConfig(setting.algorithm, clip_low=setting.clip, clip_high=setting.clip),
        sampling=SamplingConfig(
            rollouts=setting.num_rollouts,
            max_prompt_tokens=2 * setting.num_terms,
            max_completion_tokens=longest_completion(setting.num_terms) + 2,
        ),
        optimizer=OptimizerConfig(setting.optimizer, lr=setting.lr),
        log=LogConfig(tensorboard=False),
        # What a method makes of a run that collapses is of interest too.
        stop=StopConfig(collapse=0.0),
    )


def main() -> None:
    """Make one run and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="grpo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--lr", type=float, help="another learning rate; the run's name says it")
    args = parser.parse_args()
    name, setting = args.setting, SETTINGS[args.setting]
    if args.lr is not None:
        name, setting = f"{name}-lr{args.lr:g}", replace(setting, lr=args.lr)
    record = make_grpo_run(args.root, name, setting, seed=args.seed, steps=args.steps, every=args.every)
    first, last = (record[which]["pass_at_1"] for which in ("first", "last"))
    print(
        f"{args.root / f'{name}-{args.seed}'}: {record['num_params']:,} parameters, {args.steps} steps, pass@1 "
        f"{first:.1%} at the start and {last:.1%} at the end, {record['elapsed_s']:.0f} s"
    )


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
