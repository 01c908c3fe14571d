"""The runs that methods are judged on: what is rewarded, what is saved."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

pytest.importorskip("trl", reason="the runs are trained by TRL, which the extra `train` has")

from benchmarks.grpo_runs import SETTINGS, make_grpo_run, round_run, share_right
from ckptlin.problems import make_sum
from ckptlin.source import open_source

PROBLEM = make_sum((3, 7, 5))


@pytest.fixture(scope="module", autouse=True)
def trl():
    with warnings.catch_warnings():
        # TRL and datasets warn of what is to change in their own code.
        warnings.simplefilter("ignore")
        import trl

        import ckptlin.rl.trl.grpo
        import ckptlin.rl.trl.sft  # noqa: F401
    return trl


@pytest.mark.parametrize(
    ("completion", "share"), [("10;15", 1.0), ("10;16", 0.5), ("11;15", 0.5), ("15;10", 0.0), ("", 0.0)]
)
def test_an_answer_may_be_graded_total_by_total(completion, share):
    assert share_right(completion, PROBLEM) == share


def tiny(setting: str):
    return replace(
        SETTINGS[setting],
        num_prompts=8,
        num_rollouts=4,
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


@pytest.mark.parametrize("setting", ["grpo", "gspo", "dr-grpo", "sgd", "supervised"])
def test_every_setting_is_trained_saved_from_step_0_on_and_rounded_beside(tmp_path, setting):
    record = make_grpo_run(tmp_path, setting, tiny(setting), seed=3, steps=4, every=2)
    check_run(tmp_path, setting, 3)
    assert record == json.loads((tmp_path / f"{setting}-3" / "run.json").read_text())
    assert record["setting"]["seed"] == 3
    assert record["setting"]["steps"] == 4
    assert record["versions"]["trl"]
    assert len(record["rewards"]) == (0 if setting == "supervised" else 4)
    assert 0 <= record["first"]["pass_at_1"] <= 1
    base = load_file(next(tmp_path.glob("base-*")) / "model.safetensors")
    start = load_file(tmp_path / f"{setting}-3" / "checkpoint-0" / "model.safetensors")
    assert all((base[name] == start[name]).all() for name in base)


def test_settings_of_one_seed_share_their_base_and_a_run_is_made_anew(tmp_path):
    make_grpo_run(tmp_path, "grpo", tiny("grpo"), seed=0, steps=4, every=2)
    [base] = tmp_path.glob("base-*")
    made = (base / "base.json").stat().st_mtime_ns
    make_grpo_run(tmp_path, "grpo", replace(tiny("grpo"), lr=1e-4), seed=0, steps=2, every=2)
    assert list(tmp_path.glob("base-*")) == [base]
    assert (base / "base.json").stat().st_mtime_ns == made
    assert open_source(tmp_path / "grpo-0").steps == (0, 2)
    assert open_source(tmp_path / "grpo-0-bf16").steps == (0, 2)


def test_rounding_again_replaces_what_was_there(make_run, tmp_path):
    run, rounded = make_run([0, 2], model={"w": ((3, 4), np.float32)}), tmp_path / "rounded"
    round_run(run, rounded)
    (rounded / "checkpoint-6").mkdir()
    round_run(run, rounded)
    assert sorted(p.name for p in rounded.iterdir()) == ["checkpoint-0", "checkpoint-2"]
