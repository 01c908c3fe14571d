"""An evaluation's directory: begun once, gone on with under the same settings alone."""

import json
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.directory import hash_problems, open_evaluation
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.problems import Problem

SETTINGS = {"format": 1, "sampling": {"temperature": 0.6, "seed": 0}, "engine": {"name": "hf"}}
PROBLEMS = [Problem("1+1=", "2", id="a"), Problem("1+2=", "3", id="b")]


def model(identity, label="step-1"):
    return EvaluatedModel(label, "somewhere", 1, "checkpoint", None, identity, lambda _: nullcontext(Path(".")))


def kept_prompts(directory, tokenizer="t", prompts=((1,), (2, 3)), label="step-1"):
    return directory.prompts(tokenizer, PROBLEMS, lambda: list(prompts), label=label)


def test_what_is_begun_is_gone_on_with(tmp_path):
    with open_evaluation(tmp_path / "out", SETTINGS) as directory:
        assert kept_prompts(directory) == [(1,), (2, 3)]
        directory.keep_scores("step-1", {"scores": {"a": [1.0]}})
    with open_evaluation(tmp_path / "out", SETTINGS) as directory:
        assert directory.scores("step-1") == {"scores": {"a": [1.0]}}
        # A chat template that writes the date would make others today.
        assert kept_prompts(directory, prompts=((4,), (5,)), label="step-2") == [(1,), (2, 3)]
    rows = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "a", "problem": "1+1=", "answer": "2", "prompt_ids": [1]},
        {"id": "b", "problem": "1+2=", "answer": "3", "prompt_ids": [2, 3]},
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampling": {"temperature": 0.6, "seed": 1}}, "begun with sampling.seed 0, not 1;"),
        ({"engine": {"name": "vllm"}}, "begun with engine.name 'hf', not 'vllm';"),
        ({"sampling": {"temperature": 1.0, "seed": 2}}, "and 1 more"),
        ({"more": 1}, "begun with more None, not 1;"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(tmp_path, changes, expected):
    with open_evaluation(tmp_path, SETTINGS):
        pass
    before = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(InputError, match=expected), open_evaluation(tmp_path, SETTINGS | changes):
        pass
    assert (tmp_path / "evaluation.json").read_bytes() == before


def contents(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"
    }


def begun(path):
    with open_evaluation(path, SETTINGS) as directory:
        kept_prompts(directory)
        directory.keep_results({"a": 1})
        directory.samples_path("step-1").write_text("")
    return contents(path)


def test_overwrite_begins_anew_once_a_model_answers(tmp_path):
    begun(tmp_path)
    other = SETTINGS | {"engine": {"name": "vllm"}}
    with open_evaluation(tmp_path, other, overwrite=True) as directory:
        assert directory.results() is None
        assert not directory.samples_path("step-1").exists()
        directory.note_engine("step-1", {}, stop_ids=[1])
    assert {*contents(tmp_path)} == {"evaluation.json", "models/step-1.json"}
    assert json.loads((tmp_path / "evaluation.json").read_text())["engine"] == {"name": "vllm"}


def test_what_was_to_be_overwritten_comes_back_if_no_model_answers(tmp_path):
    before = begun(tmp_path)
    other = SETTINGS | {"engine": {"name": "vllm"}}
    with open_evaluation(tmp_path, other, overwrite=True) as directory:
        kept_prompts(directory, tokenizer="u")
    assert contents(tmp_path) == before


def test_a_kill_while_it_was_aside_brings_it_back(tmp_path):
    before = begun(tmp_path)
    killed = open_evaluation(tmp_path, SETTINGS, overwrite=True)
    directory = killed.__enter__()
    kept_prompts(directory, tokenizer="u")
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    killed.__exit__(None, None, None)
    with open_evaluation(copy, SETTINGS):
        pass
    assert contents(copy) == before


def test_the_tokens_that_end_answers_stay_the_same(tmp_path):
    with open_evaluation(tmp_path, SETTINGS) as directory:
        directory.note_engine("step-1", {}, stop_ids=(1, 2))
        directory.note_engine("step-1", {}, stop_ids=(1, 2))
        with pytest.raises(InputError, match=r"ended by the tokens \[1, 2\], .* now names \[1\]"):
            directory.note_engine("step-1", {}, stop_ids=(1,))


def test_to_look_at_what_is_done_changes_nothing(tmp_path):
    with open_evaluation(tmp_path, SETTINGS) as directory:
        directory.samples_path("step-1").write_text('{"id": "half')
        assert directory.done("step-1") == set()
        assert directory.samples_path("step-1").read_text() == '{"id": "half'


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with (
            pytest.raises(InputError, match="holds something else than an evaluation"),
            open_evaluation(tmp_path, SETTINGS, overwrite=overwrite),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"), open_evaluation(tmp_path / "thesis.tex", SETTINGS):
        pass


def test_a_second_process_is_told_to_wait(tmp_path):
    with (
        open_evaluation(tmp_path, SETTINGS),
        pytest.raises(InputError, match="another process is evaluating into"),
        open_evaluation(tmp_path, SETTINGS),
    ):
        pass


def test_a_model_that_reads_other_tokens_is_refused(tmp_path):
    with open_evaluation(tmp_path, SETTINGS) as directory:
        kept_prompts(directory)
        with pytest.raises(InputError, match="model step-2 has another tokenizer or chat template"):
            kept_prompts(directory, tokenizer="u", label="step-2")


@contextmanager
def counted():
    calls = []
    yield calls, lambda: calls.append(1) or "f1"


def test_a_model_is_hashed_only_when_it_may_have_changed(tmp_path):
    with open_evaluation(tmp_path, SETTINGS) as directory, counted() as (calls, fingerprint):
        assert directory.note_model(model({"files": {"a": [3, 4]}}), fingerprint) == "f1"
        assert directory.note_model(model({"files": {"a": [3, 4]}}), fingerprint) == "f1"
        assert len(calls) == 1
        # Copied: other times, the same content.
        assert directory.note_model(model({"files": {"a": [3, 5]}}), fingerprint) == "f1"
        assert len(calls) == 2
        with pytest.raises(InputError, match="samples of another model called step-1"):
            directory.note_model(model({"files": {"a": [3, 6]}}), lambda: "f2")
        assert not directory.may_have_changed(model({"files": {"a": [3, 5]}}))
        assert directory.may_have_changed(model({"files": {"a": [3, 6]}}))
        assert directory.may_have_changed(model(None))
        assert not directory.may_have_changed(model(None, label="step-2"))
        directory.note_generation("step-1", num_tokens=10, elapsed_s=2.0)
        directory.note_generation("step-1", num_tokens=5, elapsed_s=1.0)
        assert directory.model_record("step-1")["generated"] == {"tokens": 15, "seconds": 3.0}


def test_the_hash_of_problems_is_of_what_is_asked_and_what_is_right():
    first = hash_problems(PROBLEMS)
    assert first == hash_problems(list(PROBLEMS))
    assert (
        len({first, hash_problems(PROBLEMS[:1]), hash_problems([PROBLEMS[0], Problem("1+2=", "4", id="b")])})
        == 3
    )


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json is damaged"), open_evaluation(tmp_path, SETTINGS):
        pass
