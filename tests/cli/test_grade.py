import json
import re

import pytest

from tests.command_line import call, call_json, refusal
from tests.saved_answers import write_evaluation, write_jsonl

pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")


def test_a_row_a_file_with_what_was_odd_on_stderr_and_the_comparison_below(here):
    shown = call("grade", "before.json", "after.json", "--out", "scores.jsonl")
    header, _, before, after = shown.stdout.split("\n\n")[1].splitlines()
    assert re.split("  +", header) == [
        *("file", "problems", "avg@4", "over answers", "over problems"),
        *("pass@2", "pass@4", "maj@2", "maj@4", "cut off"),
    ]
    assert before.split()[:3] == ["before", "4", "25.0%"]
    assert after.split()[:3] == ["after", "4", "75.0%"]
    assert "after solves more than before: +50.0 points" in shown.stdout
    assert "within the noise" in shown.stdout
    assert "before: whether answers were finished is not known" in shown.stderr
    assert len((here / "scores.jsonl").read_text().splitlines()) == 32


def test_the_same_as_json_with_the_k_that_are_asked_for(here):
    told = call_json("grade", "before.json", "after.json", "--k", "1,2", "--level", "0.9")
    assert set(told["files"][0]["estimates"]) == {"avg@4", "pass@1", "pass@2", "maj@1", "maj@2"}
    assert told["files"][0]["estimates"]["avg@4"]["over_problems"]["level"] == 0.9
    assert told["comparisons"][0]["difference"] == 0.5


def test_an_evaluation_s_directory_has_a_row_for_each_of_its_models(here):
    write_evaluation(here / "evaluation", ["step-0", "step-100"])
    shown = call("grade", "evaluation")
    assert "step-0 " in shown.stdout
    assert "step-100 solves as many as step-0" in shown.stdout
    assert "50.0%" in shown.stdout
    assert "4 problems are few" in shown.stderr


def test_parameters_of_the_grader_are_read_as_json_or_text(here):
    write_jsonl(here / "a.jsonl", [{"problem": "?", "answer": "5", "response": "It is 5."}])
    assert call_json("grade", "a.jsonl")["files"][0]["estimates"]["avg@1"]["value"] == 0.0
    told = call_json(
        "grade", "a.jsonl", "--set-grader", "no_box=last-expression", "--set-grader", "num_workers=1"
    )
    assert told["files"][0]["estimates"]["avg@1"]["value"] == 1.0
    assert told["grader_parameters"] == {"no_box": "last-expression", "num_workers": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "there is no file absent.jsonl"),
        (["gsm8k.jsonl"], "none of them holds answers"),
        (["answers.jsonl", "--k", "5"], "k = 5 is not from 1 to 4"),
        (["answers.jsonl", "--k", "a"], "--k a is no list of numbers"),
        (["answers.jsonl", "--grader", "maths"], "there is no grader 'maths'"),
        (["answers.jsonl", "--set-grader", "strict"], "--set-grader strict is no KEY=VALUE"),
        (["answers.jsonl", "--set-grader", "strict=true"], "has no parameter 'strict'"),
        (["answers.jsonl", "--task", "aime"], "there is no task 'aime'"),
        (["answers.jsonl", "--data", "gsm8k.jsonl"], "that are not in the data"),
        ([], "Missing argument 'FILE...'"),
    ],
)
def test_what_cannot_be_graded_is_one_sentence(here, arguments, message):
    assert message in refusal("grade", *arguments)


def test_no_scores_are_written_when_something_is_wrong(here):
    (here / "scores.jsonl").write_text("mine")
    (here / "other.jsonl").write_text(json.dumps({"problem": "?", "answer": "1", "response": "x"}) + "\n")
    assert "--common" not in refusal("grade", "answers.jsonl", "other.jsonl", "--out", "scores.jsonl")
    assert (here / "scores.jsonl").read_text() == "mine"
