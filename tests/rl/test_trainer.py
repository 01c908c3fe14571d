"""Whole runs: what they write, that they go on where they stopped, and that a jump is what extrapolate says."""

import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptlin.errors import GradingError, InputError, MissingExtraError, TrainingStoppedError
from ckptlin.extrapolate import extrapolate
from ckptlin.grading.exact import ExactGrader
from ckptlin.problems import load_problems
from ckptlin.rl.config import (
    AlgorithmConfig,
    DataConfig,
    GuardConfig,
    LogConfig,
    OptimizerConfig,
    RewardConfig,
    RlExtraConfig,
)
from ckptlin.rl.config_file import config_to_yaml
from ckptlin.rl.data_order import data_order
from ckptlin.rl.jump import choose_landing, predicted
from ckptlin.rl.run_directory import RunDirectory
from ckptlin.rl.sampled_rewards import SampledRewards
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import read_log
from ckptlin.rl.trainer import train
from ckptlin.rl.trl.engine import TrlEngine
from ckptlin.source import open_source
from tests.rl_runs import NOTED, tiny_config
from tests.runs import save_checkpoint
from tests.tiny_models import load_weights

ROOT = Path(__file__).parents[2]


def weights(run, step):
    return load_weights(run / f"checkpoint-{step}")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name].view(np.uint8), second[name].view(np.uint8), err_msg=name)


def differ(first, second):
    return any((first[name] != second[name]).any() for name in first)


def steps_of(run):
    return sorted(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*"))


def test_a_run_has_checkpoint_0_and_one_every_few_steps_and_a_row_a_step(tiny_model, tmp_path):
    result = train(
        tiny_config(tiny_model, steps=5, log=LogConfig(tensorboard=True, kl_every=2)), tmp_path / "run"
    )
    run = result.out_dir
    assert steps_of(run) == [0, 2, 4, 5]
    assert_same(weights(run, 0), load_weights(tiny_model))
    assert differ(weights(run, 0), weights(run, 2))
    rows = read_log(run / "log.csv")
    assert [(row.step, row.virtual_step, row.updates) for row in rows] == [(n, n, 2 * n) for n in range(1, 6)]
    assert all(0 < row.reward < 1 and row.length > 0 and row.entropy > 0 for row in rows)
    assert [row.kl_start is not None for row in rows] == [False, True, False, True, False]
    assert rows[1].kl_start > 0
    assert rows[-1].tokens == round(sum(row.length for row in rows) * 16)
    record = json.loads((run / "ckptlin-train.json").read_text())
    assert (record["finished"], record["step"], record["jumps"]) == (True, 5, [])
    assert (result.state.step, result.state.updates) == (5, 10)
    assert list((run / "tensorboard").iterdir())
    source = open_source(run)
    assert source.steps == (0, 2, 4, 5)
    assert not [path for path in run.rglob("*") if path.name == "training_args.bin"]


def test_a_checkpoint_loads_with_its_tokenizer(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(tiny_config(tiny_model, steps=1), tmp_path / "run").out_dir
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoint-1")
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoint-1")
    assert model.dtype.itemsize == 4
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model, tmp_path):
    config = tiny_config(tiny_model)
    runs = [train(config, tmp_path / name).out_dir for name in "ab"]
    assert_same(weights(runs[0], 4), weights(runs[1], 4))
    other = train(replace(config, seed=1), tmp_path / "c").out_dir
    assert differ(weights(runs[0], 4), weights(other, 4))


def test_a_run_that_is_made_longer_is_one_that_was_as_long_from_the_start(tiny_model, tmp_path):
    # Ten problems of four a step: the second epoch begins in the third step.
    config = tiny_config(tiny_model, steps=6, save_every=3)
    whole = train(config, tmp_path / "whole").out_dir
    train(replace(config, steps=3), tmp_path / "parts")
    result = train(config, tmp_path / "parts")
    assert result.resumed_from == 3
    assert_same(weights(whole, 6), weights(result.out_dir, 6))
    assert [row.reward for row in read_log(whole / "log.csv")] == [
        row.reward for row in read_log(result.out_dir / "log.csv")
    ]


def test_a_run_that_has_ended_is_left_as_it_is(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=2)
    before = train(config, tmp_path / "run").out_dir
    stamp = (before / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns
    result = train(config, tmp_path / "run")
    assert (result.resumed_from, result.state.step) == (2, 2)
    assert (before / "checkpoint-2" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_run_with_other_settings_is_refused_and_overwrite_starts_over(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=2)
    train(config, tmp_path / "run")
    other = replace(config, optimizer=OptimizerConfig(lr=2e-3))
    with pytest.raises(InputError, match=r"optimizer\.lr differ"):
        train(other, tmp_path / "run")
    assert train(other, tmp_path / "run", overwrite=True).resumed_from is None


PROGRAM = """
import sys, torch, warnings
from pathlib import Path
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from ckptlin.rl.config_file import load_config
from ckptlin.rl.trainer import train
from ckptlin.rl.trl.engine import TrlEngine
train(load_config(Path(sys.argv[1]), with_extra=sys.argv[3] == "extra"), Path(sys.argv[2]))
"""


def in_a_process(config, run, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    kind = "plain" if config.extra is None else "extra"
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), str(run), kind], cwd=ROOT)


@pytest.mark.parametrize("extra", [None, RlExtraConfig(m=5, n=3, guard=GuardConfig(True, 4, 2, z=0.0))])
def test_a_run_killed_at_any_instant_goes_on_to_the_same_weights(tiny_model, tmp_path, extra):
    config = tiny_config(
        tiny_model,
        steps=20,
        save_every=5,
        extra=extra,
        data=DataConfig("sums:train", limit=10, held_out="sums:test"),
    )
    whole = train(config, tmp_path / "whole").out_dir
    killed = tmp_path / "killed"
    choose = random.Random(0 if extra is None else 1)
    kills = 0
    for _ in range(3):
        process = in_a_process(config, killed, tmp_path)
        # Once it trains: importing takes several seconds, in which nothing could be lost.
        begun = len(read_log(killed / "log.csv"))
        deadline = time.monotonic() + 120
        while len(read_log(killed / "log.csv")) <= begun and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(choose.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    result = train(config, killed)
    assert result.resumed_from is not None
    assert steps_of(killed) == steps_of(whole)
    last = result.state.virtual_step
    assert_same(weights(whole, last), weights(killed, last))
    assert [row.reward for row in read_log(whole / "log.csv")] == [
        row.reward for row in read_log(killed / "log.csv")
    ]
    assert not list(killed.glob(".*.partial"))


@pytest.mark.parametrize(
    ("file", "what"),
    [("optimizer.pt", "optimizer"), ("scheduler.pt", "schedule"), ("rng_state.pth", "random numbers")],
)
def test_weights_alone_are_no_resume_point(tiny_model, tmp_path, file, what):
    config = tiny_config(tiny_model, steps=2)
    run = train(config, tmp_path / "run").out_dir
    (state,) = (run / "resume").iterdir()
    (state / file).unlink()
    with pytest.raises(InputError, match=f"lacks the state of {what}"):
        train(replace(config, steps=4), run)


def test_resetting_the_optimizer_is_what_rl_extra_without_a_jump_does(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=6, save_every=2)
    plain = train(
        replace(config, optimizer=OptimizerConfig(lr=1e-3, reset_every=2)), tmp_path / "plain"
    ).out_dir
    extra = train(replace(config, extra=RlExtraConfig(m=2, n=0)), tmp_path / "extra").out_dir
    without = train(config, tmp_path / "without").out_dir
    assert_same(weights(plain, 6), weights(extra, 6))
    assert differ(weights(plain, 6), weights(without, 6))


@pytest.mark.parametrize("method", ["two-point", "ols", "relex:rank=1"])
def test_a_jump_lands_where_extrapolate_does_and_steps_go_on_from_there(tiny_model, tmp_path, method):
    config = tiny_config(tiny_model, steps=6, save_every=1, extra=RlExtraConfig(m=3, n=2, method=method))
    result = train(config, tmp_path / "run")
    run = result.out_dir
    assert steps_of(run) == [0, 1, 2, 3, 5, 6, 7, 8]
    extrapolate(open_source(run), 5, tmp_path / "out", method=method, steps="0:3", dtype="float32")
    assert_same(load_weights(tmp_path / "out"), weights(run, 5))
    (jump,) = result.jumps
    assert (jump["from"], jump["to"], jump["step"], jump["leg"]) == (3, 5, 3, [0, 1, 2, 3])
    assert (result.state.step, result.state.virtual_step) == (6, 8)
    assert not list((run / "checkpoint-5").glob("ckptlin.json"))
    assert [row.virtual_step for row in read_log(run / "log.csv")] == [1, 2, 3, 6, 7, 8]


def test_an_optimizer_that_is_kept_carries_its_moments_over_the_jump(tiny_model, tmp_path):
    import torch

    def moments(keep):
        config = tiny_config(tiny_model, steps=3, save_every=2, extra=RlExtraConfig(m=2, n=2, optimizer=keep))
        run = train(config, tmp_path / keep).out_dir
        (state,) = (run / "resume").iterdir()
        return torch.load(state / "optimizer.pt", weights_only=True)["state"]

    kept, reset = moments("keep"), moments("reset")
    # Two updates a step.
    assert {int(entry["step"]) for entry in kept.values()} == {6}
    assert {int(entry["step"]) for entry in reset.values()} == {2}


def guarded(tiny_model, **changes):
    data = DataConfig("sums:train", limit=10, held_out="sums:test")
    extra = RlExtraConfig(m=2, n=3, guard=GuardConfig(True, num_problems=8, num_samples=4), **changes)
    return tiny_config(tiny_model, steps=4, data=data, extra=extra)


def test_a_guard_measures_the_same_problems_before_and_after(tiny_model, tmp_path):
    result = train(guarded(tiny_model), tmp_path / "run")
    (jump,) = (*result.jumps, *result.jumps_undone)
    guard = jump["guard"]
    assert 0 < guard["before"] < 1
    assert guard["difference"] == pytest.approx(guard["after"] - guard["before"])
    assert guard["difference"] != 0
    assert guard["undoes"] == (guard["difference"] < -1.64 * guard["standard_error"])
    # Two times eight problems of four answers, each of one to eight tokens.
    assert 2 * 8 * 4 <= jump["tokens"] <= 2 * 8 * 4 * 8
    assert result.state.tokens == jump["tokens"] + round(
        sum(row.length * 16 for row in read_log(tmp_path / "run/log.csv"))
    )


@pytest.mark.parametrize(("after", "is_undone"), [(0.2, True), (0.49, False), (0.9, False)])
def test_a_jump_is_undone_if_it_lost_more_than_the_noise(tiny_model, tmp_path, monkeypatch, after, is_undone):
    def sample(self, config, path, problems, *, num_samples, seed):
        # Problems that differ by .1: a standard error of about .035 of the difference of unlike noise.
        level = 0.5 if path.name == "checkpoint-2" else after
        noise = np.random.default_rng(path.name == "checkpoint-2").normal(0, 0.1, (len(problems), num_samples))
        return SampledRewards(level + noise, 100)

    monkeypatch.setattr(TrlEngine, "sample", sample)
    notes = []

    class Notes:
        note = staticmethod(notes.append)

    result = train(guarded(tiny_model), tmp_path / "run", progress=Notes())
    run = result.out_dir
    if is_undone:
        assert (result.jumps, len(result.jumps_undone)) == ((), 1)
        assert steps_of(run) == [0, 2, 4]
        assert any("was undone: the reward on held-out problems fell from 0." in note for note in notes)
        # As if it had not been tried, the optimizer included.
        plain = train(replace(guarded(tiny_model), extra=None), tmp_path / "plain").out_dir
        assert_same(weights(run, 4), weights(plain, 4))
    else:
        assert (len(result.jumps), result.jumps_undone) == (1, ())
        assert steps_of(run) == [0, 2, 5, 7]


def test_a_guard_that_cannot_grade_stops_before_the_jump(tiny_model, tmp_path, monkeypatch):
    config = guarded(tiny_model)

    def sample(self, *args, **options):
        raise GradingError("a grader failed")

    monkeypatch.setattr(TrlEngine, "sample", sample)
    with pytest.raises(TrainingStoppedError, match="after step 2 could not be judged: a grader failed"):
        train(config, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [0, 2]
    monkeypatch.undo()
    assert train(config, tmp_path / "run").resumed_from == 2


def test_auto_jumps_no_further_than_its_leg_supports(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=16, save_every=1, extra=RlExtraConfig(m=8, n=1000, method="auto"))
    result = train(config, tmp_path / "run")
    (entry,) = (*result.jumps, *result.jumps_undone)
    assert entry["wanted"] == 1008
    assert entry["to"] < 1008
    assert entry["reason"]


def test_auto_takes_a_jump_where_the_leg_went_straight(tmp_path):
    run = RunDirectory(tmp_path, {})
    generator = np.random.default_rng(0)
    start, slope = generator.normal(0, 1, (2, 64, 8)).astype(np.float32)
    for step in (0, 2, 4, 6, 8):
        save_checkpoint(run.checkpoint(step), {"weight": start + step * np.float32(0.01) * slope})
    state = TrainState(tmp_path, step=8, virtual_step=8, leg_steps=8)
    landing = choose_landing(run, state, n=4, method="auto")
    assert (landing.to_step, landing.leg) == (12, (0, 2, 4, 6, 8))
    with predicted(run, state, landing, method="auto") as weights_at_12:
        (found,) = load_weights(weights_at_12).values()
    # From noiseless lines too a method may hold a little back; standing still would err by .04 · slope.
    error = np.linalg.norm(found - (start + 0.12 * slope))
    assert error < 0.1 * np.linalg.norm(0.04 * slope)
    far = choose_landing(run, state, n=100, method="auto")
    # The furthest prediction of the past, from three of the five, reached twice what it had seen.
    assert 12 < far.to_step <= 8 * 2 * 1.25


def test_no_leg_replays_anothers_prompts(tiny_model, tmp_path):
    config = tiny_config(tiny_model, steps=6, reward=RewardConfig("tests.rl_runs:noted"))
    NOTED.clear()
    train(replace(config, extra=RlExtraConfig(m=2, n=3)), tmp_path / "run")
    problems = load_problems("sums:train", limit=10)
    order = data_order(10, start=0, stop=24, seed=0)
    # Four answers to each; a batch is graded in its own order.
    assert [NOTED[i] for i in range(0, 96, 4)] == [problems[i].id for i in order]
    assert len(NOTED) == 96


@pytest.mark.parametrize("changes", [{"reset_every": 1}, {"name": "sgd", "momentum": 0.9, "lr": 0.1}])
def test_the_divergence_in_the_loss_is_to_where_the_run_began(tiny_model, tmp_path, changes):
    # The reference is the model of step 0 in every stretch: a run in parts is one in one.
    optimizer = OptimizerConfig(**{"lr": 1e-3} | changes)
    config = tiny_config(tiny_model, optimizer=optimizer, algorithm=AlgorithmConfig("grpo", kl_coef=0.5))
    whole = train(config, tmp_path / "whole").out_dir
    train(replace(config, steps=2), tmp_path / "parts")
    parts = train(config, tmp_path / "parts").out_dir
    assert_same(weights(whole, 4), weights(parts, 4))
    without = train(replace(config, algorithm=AlgorithmConfig("grpo")), tmp_path / "without").out_dir
    assert differ(weights(whole, 4), weights(without, 4))


def test_a_reward_that_is_no_number_stops_and_keeps_what_was_saved(tiny_model, tmp_path):
    config = tiny_config(tiny_model, reward=RewardConfig("tests.rl_runs:bad_reward"))
    with pytest.raises(TrainingStoppedError, match="bad_reward"):
        train(config, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [0]


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_a_tokenizer_without_end_or_padding_is_refused(tiny_model, tmp_path, token):
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    setattr(tokenizer, token, None)
    tokenizer.save_pretrained(model)
    with pytest.raises(InputError, match=token):
        train(tiny_config(model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_too_long_are_counted_and_refused(tiny_model, tmp_path):
    config = tiny_config(tiny_model)
    short = replace(config, sampling=replace(config.sampling, max_prompt_tokens=9))
    with pytest.raises(InputError, match=r"10 of 10 prompts exceed .* \(9\)"):
        train(short, tmp_path / "run")


def test_supervised_training_learns_the_solutions(tiny_model, tmp_path):
    config = tiny_config(
        tiny_model,
        steps=30,
        save_every=30,
        algorithm=AlgorithmConfig("sft"),
        optimizer=OptimizerConfig(lr=1e-2),
    )
    run = train(config, tmp_path / "run").out_dir
    rows = read_log(run / "log.csv")
    assert rows[-1].loss < 0.7 * rows[0].loss
    assert (rows[0].reward, rows[-1].updates) == (None, 60)


@pytest.mark.parametrize("package", ["trl", "datasets"])
def test_an_engine_that_is_not_installed_is_told_before_anything_is_written(
    tiny_model, tmp_path, monkeypatch, package
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtraError, match=rf"needs {package}; pip install \"ckptlin\[train\]\""):
        train(tiny_config(tiny_model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_answers_are_refused_before_training(tiny_model, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+2="}\n{"problem": "2+3=", "answer": "5"}\n')
    config = tiny_config(tiny_model, data=DataConfig(str(data)), reward=RewardConfig("exact"))
    with pytest.raises(InputError, match="1 of 2 problems have none"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_grader_found_out_of_the_ordinary_is_passed_on(tiny_model, tmp_path, monkeypatch):
    notes = []

    class Notes:
        note = staticmethod(notes.append)

    monkeypatch.setattr(ExactGrader, "notes", property(lambda self: ["16 answers were odd"]))
    train(tiny_config(tiny_model, steps=1, reward=RewardConfig("exact")), tmp_path / "run", progress=Notes())
    assert notes == ["16 answers were odd"]


@pytest.mark.parametrize("kept", ["reset", "keep"])
def test_the_schedule_counts_real_steps_across_jumps_and_restarts(tiny_model, tmp_path, kept):
    optimizer = OptimizerConfig(lr=1e-3, schedule="linear", warmup_steps=1)
    config = tiny_config(tiny_model, steps=6, optimizer=optimizer)
    plain = train(config, tmp_path / "plain").out_dir
    extra = train(replace(config, extra=RlExtraConfig(m=2, n=3, optimizer=kept)), tmp_path / "extra").out_dir
    rates = [row.lr for row in read_log(plain / "log.csv")]
    assert rates == [row.lr for row in read_log(extra / "log.csv")]
    # Twelve updates, of which two warm up; a row tells the rate of a step's last update.
    expected = [1e-3 * (0.5 if update == 1 else (12 - update) / 10) for update in range(1, 12, 2)]
    assert rates == pytest.approx(expected)
