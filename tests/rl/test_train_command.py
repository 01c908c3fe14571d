"""``ckptlin train``: what it prints, what it refuses, how it goes on and how it is interrupted."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import pytest
import yaml
from ckptlin_cli.step_progress import StepProgress, describe, duration
from ckptlin_cli.train import command

from ckptlin.rl.algorithms import ALGORITHMS
from ckptlin.rl.config_file import config_to_yaml, load_config
from ckptlin.rl.state import JumpRecord
from ckptlin.rl.step_log import read_log
from tests.command_line import call, call_json, refusal
from tests.rl_runs import tiny_config
from tests.runs import file_contents
from tests.step_rows import row_at
from tests.tiny_models import load_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_model, tmp_path):
    """A file of settings for a run of seconds."""
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(tiny_config(tiny_model)))
    return path


def pairs_of(text):
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.strip().split("\n"))


def test_a_run_is_trained_from_a_file_and_told(config, tmp_path):
    run = tmp_path / "run"
    done = call("train", "grpo", "--config", config, "--out", run)
    shown = pairs_of(done.stdout)
    assert shown["run"] == str(run)
    assert shown["steps"] == "4, 8 updates"
    assert shown["next"] == f"ckptlin ingest {run} {run}.store"
    rows = read_log(run / "log.csv")
    first, last = (sum(row.reward for row in part) / 2 for part in (rows[:2], rows[2:]))
    assert shown["reward"] == f"{first:.3f} in the first 2 steps, {last:.3f} in the last"
    # Where nobody watches: a line a save.
    lines = done.stderr.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 2/4: checkpoint-2", "step 4/4: checkpoint-4"]
    assert f"reward {first:.3f}" in lines[0]
    assert re.search(r"tokens, entropy [\d.]+, clipped [\d.]+%, \d+ tokens/s, (- |\d+ s) ?left$", lines[0])
    assert call("ingest", run, tmp_path / "store").exit_code == 0


def test_options_are_the_settings_they_stand_for(tiny_model, tmp_path):
    words = {
        "--model": tiny_model, "--data": "sums:test", "--steps": 3, "--batch": 6, "--mini-batch": 3,
        "--rollouts": 5, "--max-tokens": 9, "--lr": 1e-5, "--save-every": 2, "--seed": 7,
        "--algorithm": "gspo", "--grader": "exact", "--engine": "verl", "--device": "cpu",
        "-m": 8, "-n": 4, "--method": "ols", "--optimizer": "keep", "--held-out": "sums:train",
    }  # fmt: skip
    given = [str(word) for pair in words.items() for word in pair]
    plan = call_json(
        "train", "rl-extra", *given, "--guard", "--set", "seed=8", "--out", tmp_path / "run", "--dry-run"
    )
    found = plan["config"]
    assert (found["model"], found["data"]["source"], found["steps"]) == (str(tiny_model), "sums:test", 3)
    assert (found["batch"], found["mini_batch"], found["save_every"], found["seed"]) == (6, 3, 2, 8)
    assert (found["sampling"]["rollouts"], found["sampling"]["max_completion_tokens"]) == (5, 9)
    assert (found["optimizer"]["lr"], found["algorithm"]["name"]) == (1e-5, "gspo")
    assert (found["reward"]["grader"], found["engine"], found["device"]) == ("exact", "verl", "cpu")
    extra = found["extra"]
    assert (extra["m"], extra["n"], extra["method"], extra["optimizer"]) == (8, 4, "ols", "keep")
    assert extra["guard"]["enabled"]
    assert found["data"]["held_out"] == "sums:train"


@pytest.mark.parametrize("name", ["grpo", "rl-extra"])
def test_the_defaults_that_the_help_names_are_those_of_the_configuration(name):
    defaults = load_config(overrides=["model=m", "data.source=d"], with_extra=True).to_dict()
    named = 0
    for parameter in command.commands[name].params:
        found = re.search(r"\[default: (.*)\]$", getattr(parameter, "help", "") or "")
        if not found:
            continue
        value = defaults
        for key in parameter.name.split("__"):
            value = value[key]
        assert found[1] == ("no-guard" if value is False else str(value)), parameter.name
        named += 1
    assert named >= 12


def test_a_dry_run_shows_the_plan_and_writes_nothing(config, tmp_path):
    before = file_contents(tmp_path)
    shown = pairs_of(call("train", "grpo", "--config", config, "--out", tmp_path / "run", "--dry-run").stdout)
    assert shown["would train"].endswith("by grpo, 4 steps")
    assert shown["a step"] == "4 prompts × 4 answers, 2 updates"
    assert shown["in all"] == "8 updates, 64 answers"
    assert shown["checkpoints"] == "3 steps, 0 to 4"
    assert " each, " in shown["would write"]
    assert file_contents(tmp_path) == before
    extra = call(
        "train", "rl-extra", "--config", config, "-m", "2", "-n", "5", "--out", tmp_path / "run", "--dry-run"
    )
    assert "with RL-Extra, 2 steps and a jump of 5 by two-point, 4 steps" in extra.stdout
    assert file_contents(tmp_path) == before


def test_the_same_command_again_goes_on_and_says_so(config, tmp_path):
    words = ("train", "grpo", "--config", config, "--out", tmp_path / "run")
    call(*words, "--steps", "2")
    longer = (*words, "--steps", "4")
    assert "going on from step 2" in call(*longer, "--dry-run").stdout
    done = call(*longer)
    assert f"note: {tmp_path / 'run'} goes on from step 2\n" in done.stderr
    again = call(*longer)
    assert again.stderr == f"note: {tmp_path / 'run'} has all of its 4 steps\n"
    assert pairs_of(again.stdout)["steps"] == "4, 8 updates"
    assert call_json(*longer, "--quiet")["resumed_from"] == 4


def test_quiet_and_json_leave_the_result_alone(config, tmp_path):
    done = call("train", "grpo", "--config", config, "--out", tmp_path / "run", "--quiet", "--json")
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert (result["step"], result["updates"], result["resumed_from"]) == (4, 8, None)


def test_a_jump_is_told(config, tmp_path):
    done = call("train", "rl-extra", "--config", config, "-m", "2", "-n", "3", "--out", tmp_path / "run")
    assert "jumped from virtual step 2 to 5 by two-point\n" in done.stderr
    assert pairs_of(done.stdout)["jumps"] == "1, to virtual step 7"
    assert (tmp_path / "run/checkpoint-5").is_dir()


def test_other_settings_are_refused_and_overwrite_starts_over(config, tmp_path):
    words = ("train", "grpo", "--config", config, "--out", tmp_path / "run")
    call(*words)
    before = file_contents(tmp_path / "run")
    message = refusal(*words, "--lr", "2e-3")
    assert "was started with other settings (optimizer.lr differ)" in message
    assert message == refusal(*words, "--lr", "2e-3", "--dry-run")
    assert file_contents(tmp_path / "run") == before
    assert call_json(*words, "--lr", "2e-3", "--overwrite")["resumed_from"] is None
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optimizer"]["lr"] == 2e-3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch", "5"], "batch (5), the prompts of a step, must be a multiple of mini_batch (2)"),
        (["--rollouts", "1"], "needs at least 2"),
        (["--steps", "0"], "steps is 0"),
        (["--steps", "x"], "Invalid value for '--steps'"),
        (["--algorithm", "dapo"], "`dapo` needs dynamic sampling"),
        (["--engine", "jax"], "one of trl, verl"),
        (["--set", "optimzer.lr=1"], "did you mean `optimizer`?"),
        (["--set", "lr"], "write it as key=value"),
        (["--config", "none.yaml"], "there is no configuration none.yaml"),
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--model", "./nowhere"], "nowhere"),
        (["--grader", "perhaps"], "perhaps"),
        (["--out", ""], "must not be empty"),
        (["--set", "sampling.max_prompt_tokens=2"], "exceed sampling.max_prompt_tokens (2)"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_before_anything_is_written(config, tmp_path, words, expected):
    before = file_contents(tmp_path)
    assert expected in refusal("train", "grpo", "--config", config, "--out", tmp_path / "run", *words)
    assert file_contents(tmp_path) == before


def test_rollouts_by_vllm_say_what_to_install_where_it_is_not(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    words = ("--set", "sampling.backend=vllm-colocate")
    message = refusal("train", "grpo", "--config", config, "--out", tmp_path / "run", *words)
    assert "needs vllm" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "0"], "extra.m is 0, but must be at least 1"),
        (["--guard"], "name them by data.held_out"),
        (["--method", "three-point"], "three-point"),
        (["-m", "2", "-n", "2", "--method", "auto"], "`auto` needs 4 checkpoints"),
    ],
)
def test_what_is_wrong_with_rl_extra_is_told_in_a_sentence(config, tmp_path, words, expected):
    message = refusal("train", "rl-extra", "--config", config, "--out", tmp_path / "run", *words)
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_no_number_stops_with_a_sentence(config, tmp_path):
    words = (
        "train",
        "grpo",
        "--config",
        config,
        "--out",
        tmp_path / "run",
        "--grader",
        "tests.rl_runs:bad_reward",
    )
    message = refusal(*words, "--quiet")
    assert "nan" in message
    assert (tmp_path / "run/checkpoint-0").is_dir()


def test_a_reward_that_collapses_stops_with_a_sentence_that_names_what_is_kept(config, tmp_path):
    """Of random weights every reward lies far below the best of any window of one, sooner or later."""
    words = ("train", "grpo", "--config", config, "--out", tmp_path / "run", "--steps", "60")
    message = refusal(*words, "--quiet", "--set", "stop.window=1", "--set", "stop.collapse=0.95")
    assert "the reward collapsed, its mean over the last 1 steps" in message
    assert message.endswith("--set stop.collapse=0 goes on all the same")


def test_the_algorithms_are_listed(tmp_path):
    assert list(pairs_of(call("train", "algorithms").stdout)) == list(ALGORITHMS)
    listed = call_json("train", "algorithms")["algorithms"]
    assert listed == [asdict(algorithm) for algorithm in ALGORITHMS.values()]


def test_a_wrong_word_is_told_in_one_sentence():
    assert "Did you mean 'rl-extra'" in refusal("train", "rl-exta")
    assert "(see `ckptlin train grpo --help`)" in refusal("train", "grpo", "--stps", "5")
    assert "Missing option '--out'" in refusal("train", "grpo")


PROGRAM = (
    "import warnings; warnings.simplefilter('ignore'); import torch; torch.set_num_threads(1); "
    "from ckptlin_cli.main import main; main()"
)


def test_ctrl_c_leaves_a_run_that_the_same_command_takes_to_the_same_end(config, tmp_path):
    """On a terminal: the live line is there, and gone when the sentence is said."""
    run = tmp_path / "run"
    words = ("train", "grpo", "--config", config, "--steps", "30", "--save-every", "3")
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words), "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        # A shell ignores SIGINT for what it runs in the background, and Python inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        os.close(follower)
        deadline = time.monotonic() + 200
        while len(read_log(run / "log.csv")) < 4 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        shown = b""
        while True:
            try:
                part = os.read(leader, 1 << 16)
            except OSError:  # the other end is closed
                break
            shown += part
        assert process.stdout.read() == b""
    os.close(leader)
    text = shown.decode()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    said = re.search(
        rf"ckptlin train grpo: stopped by Ctrl-C; {run}/checkpoint-(\d+) stands, and the same command goes on "
        r"from step \1\r\n$",
        text,
    )
    assert said, text
    assert re.search(r"step \d+/30", text)
    assert re.search(r"reward 0\.\d+, [\d.]+ tokens, entropy", text)
    result = call_json(*words, "--out", run)
    assert result["resumed_from"] == int(said[1])
    call(*words, "--out", tmp_path / "whole")
    for name, expected in load_weights(tmp_path / "whole/checkpoint-30").items():
        assert (load_weights(run / "checkpoint-30")[name] == expected).all(), name


def test_without_anything_saved_ctrl_c_says_that_it_begins_again(config, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptlin.rl.trainer.train", interrupted)
    from ckptlin_cli.main import cli
    from click.testing import CliRunner

    words = ["train", "grpo", "--config", str(config), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, words, prog_name="ckptlin")
    assert done.exit_code == 130
    assert done.stderr == (
        f"ckptlin train grpo: stopped by Ctrl-C before {tmp_path / 'run'} had a checkpoint; the same command "
        "begins again\n"
    )


def test_figures_are_means_and_what_was_not_taken_is_left_out():
    rows = [row_at(1, reward=0.2, kl_start=0.5), row_at(2, reward=0.4, entropy=None)]
    assert describe(rows) == "reward 0.300, 12.5 tokens, entropy 0.70, clipped 1.0%, KL 0.5000, 512 tokens/s"
    supervised = row_at(1, reward=None, length=None, entropy=None, clip_share=None, loss=0.25, tokens_per_s=0.0)
    assert describe([supervised]) == "loss 0.2500"


def test_times_are_written_for_people():
    assert [duration(s) for s in (0, 7.4, 59.6, 125, 3600, 90061)] == [
        "0 s",
        "7 s",
        "1:00",
        "2:05",
        "1:00:00",
        "25:01:01",
    ]


def test_the_time_left_is_of_the_steps_of_this_start(capsys):
    with StepProgress(100, is_quiet=False) as progress:
        for step, elapsed_s in ((50, 1000.0), (51, 1002.0), (52, 1004.0)):
            progress.on_step(row_at(step, elapsed_s=elapsed_s))
        progress.on_checkpoint(52, Path("run/checkpoint-52"))
        progress.on_checkpoint(62, Path("run/checkpoint-62"))  # where a jump led: no steps to tell of
        progress.on_jump(JumpRecord(52, 62, 52, "ols", (50, 52), 62), undone=False)
        progress.on_jump(JumpRecord(62, 72, 62, "ols", (50, 52), 62), undone=True)
        progress.note("a note")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 52/100: checkpoint-52, reward 0.100")
    assert lines[0].endswith("1:36 left")
    assert lines[1:] == ["jumped from virtual step 52 to 62 by ols", "note: a note"]


def test_quiet_shows_notes_alone(capsys):
    with StepProgress(100, is_quiet=True) as progress:
        progress.on_step(row_at(1))
        progress.on_checkpoint(1, Path("run/checkpoint-1"))
        progress.on_jump(JumpRecord(1, 3, 1, "ols", (0, 1), 3), undone=False)
        progress.note("a note")
    assert capsys.readouterr().err == "note: a note\n"


def test_the_group_is_a_group():
    assert isinstance(command, click.Group)
    assert list(command.commands) == ["grpo", "rl-extra", "algorithms", "launch-config"]
