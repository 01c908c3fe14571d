"""The command `ckptlin evaluate`, on a real model by transformers."""

import csv
import json
import re
import shlex

import pytest

from tests.command_line import call, call_json, refusal
from tests.evaluate.conftest import save_noisy_base

WORDS = ("--task", "sums", "--limit", "12", "--engine", "hf", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluate") / "run"
    for step, scale in ((0, 0.3), (10, 0.0)):
        save_noisy_base(run / f"checkpoint-{step}", scale)
    return run


@pytest.fixture(scope="module")
def told(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("told")
    words = ("evaluate", run, *WORDS, "--out", out / "out", "--plot", out / "a.png", "--csv", out / "a.csv")
    return out, call(*words)


def test_a_row_a_model_and_the_comparison_below(told):
    out, result = told
    lines = result.stdout.splitlines()
    assert lines[0] == "sums: 4 answers to each problem at temperature 1"
    header = re.split("  +", lines[2])
    assert header[:5] == ["model", "problems", "avg@4", "over answers", "over problems"]
    assert [line.split()[0] for line in lines[4:6]] == ["step-0", "step-10"]
    assert "step-10 solves more than step-0: +" in result.stdout
    assert f"results  {out / 'out' / 'results.json'}" in result.stdout
    assert "step-0 (1 of 2): 48 answers to 12 problems" in result.stderr


def test_the_same_figures_in_every_form(told, run):
    out, result = told
    again = call_json("evaluate", run, *WORDS, "--out", out / "out", "--quiet")
    assert again["models"] == json.loads((out / "out/results.json").read_text())["models"]
    value = again["models"][1]["estimates"]["avg@4"]["value"]
    assert f"{value:.1%}" in result.stdout
    with (out / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["value"]) for r in rows if (r["label"], r["metric"]) == ("step-10", "avg@4")] == [value]
    assert (out / "a.png").stat().st_size > 5_000


def test_a_target_step_is_one_word_more(run, tmp_path):
    options = (
        "--steps",
        "10",
        "--step",
        "20",
        "--method",
        "two-point",
        "--samples",
        "1",
        "--out",
        tmp_path / "o",
    )
    told = call_json("evaluate", run, *WORDS, *options)
    assert [(m["label"], m["origin"]) for m in told["models"]] == [
        ("step-10", "checkpoint"),
        ("step-20-two-point-0-10", "extrapolated"),
    ]


def test_a_dry_run_writes_nothing_and_touches_no_model(run, tmp_path):
    shown = call("evaluate", run, *WORDS, "--out", tmp_path / "out", "--dry-run").stdout
    assert "models    step-0, step-10" in shown
    assert "samples   96, 4 a problem and model; 0 are there already" in shown
    assert not (tmp_path / "out").exists()
    told = call_json("evaluate", run, *WORDS, "--out", tmp_path / "out", "--dry-run")
    assert (told["num_samples"], told["engine"]) == (96, "hf")


def test_problems_of_ones_own_with_another_template_and_grader(run, tmp_path):
    rows = [{"problem": "2+3", "answer": "5"}, {"problem": "1+1", "answer": "2"}]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = shlex.split("--template {problem}= --no-chat --grader exact --temperature 0 --max-tokens 4")
    told = call_json(
        "evaluate", run, "--task", tmp_path / "mine.jsonl", *WORDS[4:], *words, "--out", tmp_path / "out"
    )
    assert told["models"][1]["num_problems"] == 2
    # The demo's model answers a sum of two terms by its total.
    assert set(told["models"][1]["scores"]["0"]) in ({0.0}, {1.0})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--task", "aime"], "there is no task 'aime'"),
        (["RUN"], "Missing option '--task'"),
        (["RUN", "--task", ""], "must not be empty"),
        (["nowhere/at/all", "--task", "sums"], "neither a directory nor a name of the hub"),
        (["RUN", "--task", "sums", "--engine", "llama"], "there is no engine 'llama'"),
        (["RUN", "--task", "sums", "--engine", "hf", "--k", "1,8"], "k = 8 is not between 1 and"),
        (["RUN", "--task", "sums", "--k", "one"], "--k one is no list of numbers"),
        (["RUN", "--task", "sums", "--temperature", "-1"], "temperature is -1"),
        (["RUN", "--task", "sums", "--plot", "a.bmp"], "a figure cannot be written to a.bmp"),
        (["RUN", "--task", "sums", "--csv", "none/a.csv"], "lies in no directory that exists"),
        (["RUN", "--task", "sums", "--steps", "5"], "step 5 of --steps 5 does not exist"),
        (["RUN", "--task", "sums", "--engine", "hf", "--tensor-parallel", "2"], "tensor_parallel"),
        (["RUN", "--task", "mine.jsonl"], "there is no file mine.jsonl"),
        (["RUN", "--task", "noanswer.jsonl"], "answer"),
        (["RUN", "--task", "boxed.jsonl", "--engine", "hf"], "no chat template; give --no-chat"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noanswer.jsonl").write_text('{"problem": "1+1"}\n')
    (tmp_path / "boxed.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    assert message in refusal("evaluate", *(run if word == "RUN" else word for word in words), "--out", "out")


def test_the_engine_that_is_not_installed_says_what_to_install(run, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    words = ("evaluate", run, "--task", "sums", "--limit", "2", "--engine", "vllm", "--out", tmp_path / "out")
    assert 'pip install "ckptlin[vllm]"' in refusal(*words)


def test_the_tasks_are_listed():
    shown = call("tasks").stdout
    assert [line.split()[0] for line in shown.splitlines()] == [*call_json("tasks"), "FILE"]
    assert call_json("tasks")["aime24"]["sampling"]["num_samples"] == 64
