"""Small real GRPO runs: what the prediction methods are judged on.

    python -m benchmarks.grpo_runs /scratch/runs --setting grpo --seed 0

pretrains the demo's Qwen2 model on the demo's sums until it writes about a quarter of the answers without a
mistake, sampled at temperature 1, and goes on with TRL's ``GRPOTrainer``: the reward is 1 for an answer
without a mistake and 0 otherwise. It writes ``grpo-0/checkpoint-0``, ``checkpoint-10``, ... in
float32, as the optimizer holds them, and ``grpo-0-bf16/``, the same rounded to bfloat16, which is what most
trainers save; beside them ``run.json`` with settings, versions and rewards. A run takes one to three minutes of
one core.

It needs the ``models`` extra and ``trl``, at the versions of ``requirements/lock.txt``. ``supervised`` is the
demo's own run, for contrast, and needs no TRL. One thread computes, as in `ckptlin.demo.training`.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.report import versions
from ckptlin.demo.compare import score
from ckptlin.demo.corpus import EncodedProblems, encode
from ckptlin.demo.training import DemoSettings, new_model, pretrain, train_run, undisturbed
from ckptlin.problems import Problem, draw_sums, make_sum
from ckptlin.problems.sums import END, build_tokenizer
from ckptlin.progress import NO_PROGRESS

__all__ = ["SETTINGS", "Setting", "make_grpo_run", "round_run", "share_right", "wholly_right"]

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy")


@dataclass(frozen=True)
class Setting:
    """A way to train.

    Attributes
    ----------
    num_prompts, num_generations : int
        Different sums a step, and answers sampled to each.
    mini_batches : int
        Optimizer steps that one batch of answers is split over; 1 is on-policy.
    dense : bool
        Reward the share of right totals instead of a wholly right answer.
    grpo : dict
        What else ``GRPOConfig`` is given.
    """

    lr: float = 1e-5
    optim: str = "adamw_torch"
    num_prompts: int = 32
    num_generations: int = 8
    mini_batches: int = 1
    hidden_size: int = 64
    num_layers: int = 3
    num_terms: int = 4
    pretrain_steps: int = 300
    dense: bool = False
    supervised: bool = False
    grpo: dict[str, Any] = field(
        default_factory=lambda: {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.0}
    )


_GRPO = Setting()
SETTINGS = {
    "grpo": _GRPO,
    "fast": replace(_GRPO, lr=5e-5),
    "small-batch": replace(_GRPO, num_prompts=16),
    "large-batch": replace(_GRPO, num_prompts=64),
    "dense": replace(_GRPO, dense=True),
    "dr-grpo": replace(_GRPO, grpo={"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}),
    "gspo": replace(
        _GRPO, mini_batches=4, grpo=_GRPO.grpo | {"importance_sampling_level": "sequence", "epsilon": 3e-3}
    ),
    "sgd": replace(_GRPO, optim="sgd", lr=0.005),
    "wide": replace(_GRPO, hidden_size=128, num_layers=2),
    "supervised": Setting(num_prompts=128, lr=3e-5, supervised=True),
}


def wholly_right(problem: Problem, completion: str) -> float:
    """Return 1 for an answer without a mistake, 0 otherwise.

    Examples
    --------
    >>> problem = make_sum((3, 7, 5))
    >>> wholly_right(problem, "10;15#"), wholly_right(problem, "10;16#"), wholly_right(problem, "10;15")
    (1.0, 0.0, 0.0)
    """
    return float(completion == f"{problem.answer}{END}")


def share_right(problem: Problem, completion: str) -> float:
    """Return the share of the running totals that are right, each at its place.

    Examples
    --------
    >>> problem = make_sum((3, 7, 5))
    >>> share_right(problem, "10;15#"), share_right(problem, "10;16#"), share_right(problem, "")
    (1.0, 0.5, 0.0)
    """
    right = (problem.answer or "").split(";")
    given = completion.split(END)[0].split(";")
    return sum(a == b for a, b in zip(right, given, strict=False)) / len(right)


def make_grpo_run(
    root: Path, name: str, setting: Setting, *, seed: int = 0, steps: int = 240, every: int = 10
) -> dict[str, Any]:
    """Train a run, save it as ``root/name-seed`` and, rounded, ``root/name-seed-bf16``; return its record.

    Parameters
    ----------
    root : Path
        Bases are kept there too, so that settings of one seed start from the same model.
    seed : int
        Of the model, the problems, their order and the sampling.
    """
    run_dir = root / f"{name}-{seed}"
    demo = DemoSettings(
        num_terms=setting.num_terms,
        num_held_out=min(1_000, 10 ** (setting.num_terms - 1)),
        num_train=min(30_000, 9 * 10 ** (setting.num_terms - 1)),
        pretrain_steps=setting.pretrain_steps,
        hidden_size=setting.hidden_size,
        num_layers=setting.num_layers,
        run_steps=steps,
        checkpoint_every=every,
        run_lr=setting.lr,
        run_batch=setting.num_prompts,
        last_seen=every,
    )
    tokenizer = build_tokenizer()
    problems = draw_sums(demo.num_train + demo.num_held_out, num_terms=demo.num_terms, seed=seed)
    train, held_out = problems[: demo.num_train], encode(problems[demo.num_train :], tokenizer)
    start = time.perf_counter()
    with undisturbed(seed):
        base = _base(root, demo, tokenizer, encode(train, tokenizer), seed)
        shutil.rmtree(run_dir, ignore_errors=True)
        # Trainers save no checkpoint of step 0.
        shutil.copytree(base, run_dir / "checkpoint-0")
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base)
        rewards: list[Any] = []
        if setting.supervised:
            arguments = encode(train, tokenizer), demo, run_dir
            train_run(model, tokenizer, *arguments, seed=seed + 1, progress=NO_PROGRESS)
        else:
            rewards = _train_grpo(model, tokenizer, train, setting, run_dir, seed + 1, steps, every)
        record = {
            "setting": asdict(setting) | {"name": name, "seed": seed, "steps": steps, "every": every},
            "num_params": sum(p.numel() for p in model.parameters()),
            "versions": versions(_PACKAGES),
            "elapsed_s": round(time.perf_counter() - start, 1),
            "first": score(run_dir / "checkpoint-0", held_out).to_dict(),
            "last": score(run_dir / f"checkpoint-{steps}", held_out).to_dict(),
            "rewards": rewards,
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


def _base(root: Path, demo: DemoSettings, tokenizer: Any, problems: EncodedProblems, seed: int) -> Path:
    """Return the pretrained model of a seed and size, trained if it is not there yet."""
    path = root / f"base-{demo.num_terms}-{demo.pretrain_steps}-{demo.hidden_size}x{demo.num_layers}-{seed}"
    if not (path / "tokenizer.json").is_file():
        model = new_model(demo, tokenizer)
        pretrain(model, tokenizer, problems, demo, path, seed=seed, progress=NO_PROGRESS)
    return path


def _train_grpo(
    model: Any,
    tokenizer: Any,
    problems: tuple[Problem, ...],
    setting: Setting,
    run_dir: Path,
    seed: int,
    steps: int,
    every: int,
) -> list[Any]:
    """Train by TRL; return the mean reward of each ten steps."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    grade: Callable[[Problem, str], float] = share_right if setting.dense else wholly_right

    by_text = {problem.problem: problem for problem in problems}

    def reward(*, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        # TRL decodes without special tokens, and the end is one; a wrong end is a wrong answer.
        written = tokenizer.batch_decode(completion_ids)
        pairs = zip(prompts, written, strict=True)
        return [grade(by_text[prompt], text.replace("<pad>", "")) for prompt, text in pairs]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(run_dir),
            seed=seed,
            data_seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to=[],
            disable_tqdm=True,
            logging_steps=10,
            max_steps=steps,
            save_strategy="steps",
            save_steps=every,
            save_only_model=True,
            learning_rate=setting.lr,
            lr_scheduler_type="constant",
            optim=setting.optim,
            per_device_train_batch_size=setting.num_prompts * setting.num_generations // setting.mini_batches,
            steps_per_generation=setting.mini_batches,
            num_generations=setting.num_generations,
            max_completion_length=len(make_sum([9] * setting.num_terms).answer or "") + 3,
            temperature=1.0,
            top_k=0,
            **setting.grpo,
        ),
        train_dataset=Dataset.from_dict({"prompt": [p.problem for p in problems]}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [[line["step"], round(line["reward"], 4)] for line in trainer.state.log_history if "reward" in line]


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
    first, last = (record[which]["exact"] for which in ("first", "last"))
    print(
        f"{args.root / f'{name}-{args.seed}'}: {record['num_params']:,} parameters, {args.steps} steps, "
        f"{first:.1%} right at the start and {last:.1%} at the end, {record['elapsed_s']:.0f} s"
    )


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
