"""The runs that methods are judged on: what is rewarded, what is saved."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from benchmarks.grpo_runs import SETTINGS, make_grpo_run, round_run, share_right, wholly_right
from ckptlin.problems import make_sum
from ckptlin.source import open_source

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate, which the extra `models` has")

PROBLEM = make_sum((3, 7, 5))


@pytest.mark.parametrize(
    ("completion", "whole", "share"),
    [
        ("10;15#", 1, 1.0),
        ("10;16#", 0, 0.5),
        ("11;15#", 0, 0.5),
        ("10;15", 0, 1.0),
        ("10;15#1", 0, 1.0),
        ("10#;15", 0, 0.5),
        ("15;10#", 0, 0.0),
        ("", 0, 0.0),
    ],
)
def test_an_answer_is_graded_as_a_whole_or_total_by_total(completion, whole, share):
    assert wholly_right(PROBLEM, completion) == whole
    assert share_right(PROBLEM, completion) == share


def tiny(setting: str):
    return replace(
        SETTINGS[setting],
        num_prompts=8,
        num_generations=4,
        hidden_size=32,
        num_layers=1,
        num_terms=2,
        dense=True,
        pretrain_steps=150,
        lr=1e-3,
    )


def check_run(root, name: str, seed: int) -> None:
    run = root / f"{name}-{seed}"
    source = open_source(run)
    assert source.steps == (0, 2, 4)
    first, last = (load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in (0, 4))
    assert all(w.dtype == np.float32 for w in first.values())
    assert any((first[tensor] != last[tensor]).any() for tensor in first)
    for step in (0, 2, 4):
        exact = load_torch(run / f"checkpoint-{step}" / "model.safetensors")
        rounded = load_torch(root / f"{name}-{seed}-bf16" / f"checkpoint-{step}" / "model.safetensors")
        assert exact.keys() == rounded.keys()
        for tensor, weights in exact.items():
            assert torch.equal(weights.to(torch.bfloat16), rounded[tensor])
    assert open_source(root / f"{name}-{seed}-bf16").steps == (0, 2, 4)


def test_a_supervised_run_is_saved_from_step_0_on_and_rounded_beside(tmp_path):
    record = make_grpo_run(tmp_path, "supervised", tiny("supervised"), seed=3, steps=4, every=2)
    check_run(tmp_path, "supervised", 3)
    assert record["setting"]["seed"] == 3
    assert record["rewards"] == []
    base = next(tmp_path.glob("base-*"))
    assert load_file(base / "model.safetensors").keys() == record_of(tmp_path, "supervised-3").keys()


def record_of(root, run: str):
    assert json.loads((root / run / "run.json").read_text())["setting"]["steps"] == 4
    return load_file(root / run / "checkpoint-0" / "model.safetensors")


@pytest.mark.parametrize("setting", ["grpo", "gspo", "dr-grpo", "sgd"])
# TRL and datasets warn of what is to change in their own code.
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_every_setting(tmp_path, setting):
    pytest.importorskip("trl", reason="GRPOTrainer is TRL's, which requirements/lock.txt pins")
    record = make_grpo_run(tmp_path, setting, tiny(setting), seed=0, steps=4, every=2)
    check_run(tmp_path, setting, 0)
    assert record["versions"]["trl"]


def test_rounding_again_replaces_what_was_there(tmp_path):
    make_grpo_run(tmp_path, "supervised", tiny("supervised"), seed=3, steps=4, every=2)
    run, rounded = tmp_path / "supervised-3", tmp_path / "supervised-3-bf16"
    (rounded / "checkpoint-6").mkdir()
    round_run(run, rounded)
    assert sorted(p.name for p in rounded.iterdir()) == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]
