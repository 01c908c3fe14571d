"""RL-Extra beside plain GRPO and its controls: pass@1 at equal real steps, over several seeds.

    python -m benchmarks.rl_extra /scratch/rl --lr 1e-5 --seeds 0 1 2 --steps 200

trains the demo's base model on the demo's sums, 256 rollouts a step, in each of the settings below, and
measures pass@1 at temperature 1 on problems that no run trains on or guards itself by, the same ones with the
same seed for every run. The controls: GRPO at the learning rate times (m+n)/m, since a jump that always works
is a longer stride, and GRPO whose optimizer forgets as often as RL-Extra's. Generated tokens and wall time are
those of the whole run, with what guard and backtest took. What is there already is not trained again;
``--jobs 2`` trains two runs at once.

It needs the ``train`` extra. One thread computes in each run.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import versions
from ckptlin.demo import base_model
from ckptlin.problems import Problem, load_problems
from ckptlin.rl.config import (
    DataConfig,
    GuardConfig,
    LogConfig,
    OptimizerConfig,
    RewardConfig,
    RlExtraConfig,
    SamplingConfig,
    TrainConfig,
)
from ckptlin.rl.engine import open_engine
from ckptlin.rl.guard import choose_problems
from ckptlin.rl.trainer import train

__all__ = ["SETTINGS", "config_of", "make_run", "table"]

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy")
_NUM_PROBLEMS, _NUM_SAMPLES, _NUM_GUARDING, _SEED = 1000, 8, 64, 12345
SETTINGS = {
    "grpo": "GRPO",
    "grpo-lr": "GRPO, learning rate × (m+n)/m",
    "grpo-resets": "GRPO, optimizer reset every m steps",
    "two-point": "RL-Extra, two-point, optimizer reset (the paper)",
    "two-point-keep": "RL-Extra, two-point, optimizer kept",
    "auto-guard": "RL-Extra, auto with guard, optimizer kept",
}


def config_of(setting: str, *, lr: float, seed: int, steps: int, m: int, n: int) -> TrainConfig:
    """Return the configuration of a run."""
    guard = GuardConfig(enabled=True, num_problems=_NUM_GUARDING, num_samples=8)
    extra = {
        "two-point": RlExtraConfig(m, n),
        "two-point-keep": RlExtraConfig(m, n, optimizer="keep"),
        "auto-guard": RlExtraConfig(m, n, method="auto", optimizer="keep", guard=guard),
    }.get(setting)
    optimizer = OptimizerConfig(lr=lr)
    if setting == "grpo-lr":
        optimizer = replace(optimizer, lr=lr * (m + n) / m)
    if setting == "grpo-resets":
        optimizer = replace(optimizer, reset_every=m)
    return TrainConfig(
        model=str(base_model()),
        steps=steps,
        batch=32,
        mini_batch=32,
        save_every=max(1, m // 5),
        seed=seed,
        device="cpu",
        data=DataConfig("sums:train", held_out="sums:test"),
        reward=RewardConfig("exact"),
        sampling=SamplingConfig(rollouts=8, max_prompt_tokens=16, max_completion_tokens=16),
        optimizer=optimizer,
        extra=extra,
        log=LogConfig(tensorboard=False),
    )


def make_run(root: Path, setting: str, *, lr: float, seed: int, steps: int, m: int, n: int) -> dict[str, Any]:
    """Train a run, measure it, and return its record; one that is there is only read."""
    import torch

    torch.set_num_threads(1)
    run = root / f"{setting}-lr{lr:g}-{m}-{n}-{seed}"
    record_path = run / "result.json"
    config = config_of(setting, lr=lr, seed=seed, steps=steps, m=m, n=n)
    if record_path.is_file():
        record: dict[str, Any] = json.loads(record_path.read_text())
        if record.get("config") == config.to_dict():
            return record
    result = train(config, run)
    problems = _evaluated()
    engine = open_engine(config.engine)
    sampled = {
        step: engine.sample(
            config, run / f"checkpoint-{step}", problems, num_samples=_NUM_SAMPLES, seed=_SEED
        ).rewards
        for step in (0, result.state.virtual_step)
    }
    first, last = (values.mean(axis=1) for values in sampled.values())
    record = {
        "setting": setting,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "m": m,
        "n": n,
        "virtual_steps": result.state.virtual_step,
        "tokens": result.state.tokens,
        "elapsed_s": result.state.elapsed_s,
        "num_jumps": len(result.jumps),
        "num_undone": len(result.jumps_undone),
        "first": float(first.mean()),
        "last": float(last.mean()),
        "standard_error": float(last.std(ddof=1) / math.sqrt(last.size)),
        "config": config.to_dict(),
        "versions": versions(_PACKAGES),
    }
    record_path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _evaluated() -> list[Problem]:
    """Return the problems that runs are measured on: none that a guard chooses for any of a hundred seeds."""
    problems = load_problems("sums:test")
    guarding = {
        problem.id for seed in range(100) for problem in choose_problems(problems, _NUM_GUARDING, seed=seed)
    }
    left = [problem for problem in problems if problem.id not in guarding]
    if len(left) < _NUM_PROBLEMS:
        raise SystemExit(f"guards leave {len(left)} problems to measure on, fewer than {_NUM_PROBLEMS}")
    return left[:_NUM_PROBLEMS]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table over seeds: mean and standard error of pass@1, and of its difference to GRPO by seed."""
    lines = [
        "| setting | pass@1 | − GRPO | − GRPO, higher rate | virtual steps | jumps (undone) | tokens | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_setting = {name: [r for r in records if r["setting"] == name] for name in SETTINGS}
    for name, text in SETTINGS.items():
        runs = sorted(by_setting[name], key=lambda r: r["seed"])
        if not runs:
            continue
        base = [_against(runs, by_setting[other]) for other in ("grpo", "grpo-lr")]
        jumps = f"{_mean(runs, 'num_jumps'):.1f} ({_mean(runs, 'num_undone'):.1f})"
        lines.append(
            f"| {text} | {_spread([r['last'] for r in runs])} | {base[0]} | {base[1]} "
            f"| {_mean(runs, 'virtual_steps'):.0f} | {jumps} | {_mean(runs, 'tokens') / 1e3:.0f} k "
            f"| {_mean(runs, 'elapsed_s'):.0f} s |"
        )
    return "\n".join(lines)


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f}"


def _against(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    known = {other["seed"]: other["last"] for other in others}
    differences = [run["last"] - known[run["seed"]] for run in runs if run["seed"] in known]
    return _spread(differences) if differences and runs[0]["setting"] != others[0]["setting"] else ""


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("-m", type=int, default=20)
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    args = parser.parse_args()
    wanted = [(setting, seed) for seed in args.seeds for setting in args.settings]
    sizes = {"lr": args.lr, "steps": args.steps, "m": args.m, "n": args.n}
    if args.jobs > 1:
        options = [f for key, value in sizes.items() for f in ("-" * (1 + (len(key) > 1)) + key, str(value))]

        def one(setting: str, seed: int) -> None:
            chosen = ["--settings", setting, "--seeds", str(seed)]
            command = [sys.executable, "-m", "benchmarks.rl_extra", str(args.root), *options, *chosen]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda pair: one(*pair), wanted))
    records = []
    for setting, seed in wanted:
        records.append(make_run(args.root, setting, seed=seed, **sizes))
        print(json.dumps({k: records[-1][k] for k in ("setting", "seed", "first", "last", "elapsed_s")}))
    print(table(records))


if __name__ == "__main__":
    main()
