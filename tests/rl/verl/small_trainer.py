"""A program that takes verl's settings and keeps verl's files, and trains by a rule that can be done by hand.

It stands where verl stands when the engine is tested on a machine without GPUs: read prompts, go on from what
was saved, save, then write figures.  Its weights move by the sum of the prompts' numbers with a momentum of
0.9, in float32; so every prompt left out or seen twice, every step miscounted and every optimizer kept or lost
where it should not shows in the weights.

    small_trainer.py [OPTION...] KEY=VALUE...
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from pyarrow import parquet
from safetensors import safe_open
from safetensors.numpy import save_file

MOMENTUM = 0.9


def read_settings(overrides):
    """Values as YAML reads them, which for the settings at hand is what Hydra reads."""
    return {key: yaml.safe_load(text) for key, _, text in (item.partition("=") for item in overrides)}


def number_of(text):
    """A number in [0, 1) that tells prompts apart."""
    return np.float32(sum(ord(letter) * (i + 1) for i, letter in enumerate(text)) % 997) / np.float32(997)


def update(weights, momentum, texts, lr):
    """Move weights by a step; the new momentum is returned."""
    momentum = np.float32(MOMENTUM) * momentum + np.float32(sum(map(number_of, texts)))
    for value in weights.values():
        value += np.float32(lr) * momentum
    return momentum


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--ungraded-at", type=int, default=-1)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--round", action="store_true")
    parser.add_argument("--worse-when-higher", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    settings = read_settings(options.overrides)
    rows = parquet.read_table(settings["data.train_files"][0]).to_pylist()
    model = Path(settings["actor_rollout_ref.model.path"])
    sys.stdout.write(f"model {model} resume {settings.get('trainer.resume_from_path')} rows {len(rows)}\n")
    sys.stdout.flush()
    if settings["trainer.val_only"]:
        answer(settings, rows, model, -1 if options.worse_when_higher else 1)
        return
    saved = Path(settings["trainer.default_local_dir"])
    figures = Path(settings["trainer.project_name"]) / f"{settings['trainer.experiment_name']}.jsonl"
    step, momentum = 0, np.float32(0)
    source = model / "model.safetensors"
    if settings["trainer.resume_mode"] == "resume_path":
        folder = settings["trainer.resume_from_path"]
        step = int(folder.split("global_step_")[-1])
        source = Path(folder) / "actor/model_world_size_1_rank_0.pt"
        momentum = np.float32(json.loads((Path(folder) / "actor/optim_world_size_1_rank_0.pt").read_text()))
    with safe_open(source, "np") as file:
        weights = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    batch = settings["data.train_batch_size"]
    total, every = settings["trainer.total_training_steps"], settings["trainer.save_freq"]
    while step < total:
        step += 1
        time.sleep(options.sleep)
        if step == options.fail_at:
            sys.stderr.write("the GPUs have caught fire\n")
            sys.exit(3)
        if step == options.ungraded_at:
            (figures.parent / "reward-error.txt").write_text(
                "the reward function f returned None for problem 7"
            )
            time.sleep(600)
        texts = [row["prompt"][-1]["content"] for row in rows[:batch]]
        del rows[:batch]
        momentum = update(weights, momentum, texts, settings["actor_rollout_ref.actor.optim.lr"])
        if step % every == 0 or step == total:
            save(
                saved / f"global_step_{step}",
                weights,
                momentum,
                model,
                np.float16 if options.round else np.float32,
            )
            (saved / "latest_checkpointed_iteration.txt").write_text(str(step))
        write_figures(figures, step, settings)


def save(folder, weights, momentum, model, dtype):
    actor = folder / "actor"
    shutil.copytree(model, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    rounded = {name: value.astype(dtype) for name, value in weights.items()}
    save_file(rounded, actor / "huggingface/model.safetensors", metadata={"format": "pt"})
    save_file(weights, actor / "model_world_size_1_rank_0.pt")
    (actor / "optim_world_size_1_rank_0.pt").write_text(json.dumps(float(momentum)))
    (folder / "data.pt").write_text("where verl believes to be in the data")


def figures_of(lr):
    """What verl says of a step, as far as it is read."""
    return {
        "critic/score/mean": 0.5,
        "response_length/mean": 10.0,
        "response_length/max": 12.0,
        "response_length/clip_ratio": 0.25,
        "actor/entropy": 1.5,
        "actor/pg_clipfrac": 0.01,
        "actor/loss": -0.1,
        "actor/grad_norm": 2.0,
        "actor/lr": lr,
        "perf/time_per_step": 2.0,
    }


def write_figures(path, step, settings):
    data = figures_of(settings["actor_rollout_ref.actor.optim.lr"])
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps({"step": step, "data": data}).encode() + b"\n")


def answer(settings, rows, model, sign):
    """Answer as verl validates: every prompt so many times, graded; here by a weight, higher being better."""
    with safe_open(model / "model.safetensors", "np") as file:
        score = sign * float(file.get_tensor("model.embed_tokens.weight")[0, 0])
    folder = Path(settings["trainer.validation_data_dir"])
    folder.mkdir(parents=True)
    with (folder / "0.jsonl").open("w") as file:
        for row in rows:
            for sample in range(settings["actor_rollout_ref.rollout.val_kwargs.n"]):
                index = row["extra_info"]["index"]
                line = {"score": score + index + sample / 10, "index": index, "tokens": 3}
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    os.umask(0o022)
    main()
