"""Layouts of saved answers, each written here as the programs that keep them do."""

import json
from pathlib import Path

import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.saved import read_saved, sample_files
from ckptlin.problems import Problem
from tests.saved_answers import PROBLEMS, answered, write_evaluation, write_json, write_jsonl

DATA = [Problem(p["problem"], p["answer"], id=p["id"]) for p in PROBLEMS]


def texts(saved):
    return [[completion.text for completion in given] for given in saved.completions]


EXPECTED = [answered(1, 2, p["answer"]) for p in PROBLEMS]


def paper(index, problem):
    generated = [{"response_id": j, "text": text} for j, text in enumerate(EXPECTED[index])]
    gold = rf"\boxed{{{problem['answer']}}}"
    return [{"index": index, "problem": problem["problem"], "gt": gold, "generated_texts": generated}]


def verl(index, problem):
    prompt = f"user\n{problem['problem']} Let's think step by step.\nassistant\n"
    own = {"input": prompt, "gts": problem["answer"], "score": 1.0, "step": 100, "reward": 1.0}
    return [{**own, "output": text} for text in EXPECTED[index]]


def chat(index, problem):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem["problem"]}]
    outputs = [{"content": text} for text in EXPECTED[index]]
    return [{"prompt": messages, "reward_model": {"ground_truth": problem["answer"]}, "outputs": outputs}]


def rows_of(layout):
    makers = {
        "row": lambda i, p: [{**p, "response": text} for text in EXPECTED[i]],
        "own ids": lambda i, p: [{**p, "id": f"{i}-{j}", "completion": t} for j, t in enumerate(EXPECTED[i])],
        "list": lambda i, p: [{**p, "responses": EXPECTED[i]}],
        "objects": lambda i, p: [{**p, "samples": [{"text": text} for text in EXPECTED[i]]}],
        "paper": paper,
        "verl": verl,
        "chat": chat,
    }
    return [row for i, p in enumerate(PROBLEMS) for row in makers[layout](i, p)]


LAYOUTS = ["row", "own ids", "list", "objects", "paper", "verl", "chat"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_each_layout_gives_the_same_answers_to_the_same_problems(tmp_path, layout, suffix):
    path = tmp_path / f"answers.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="writes parquet; the extra `eval` has it")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows_of(layout)), path)
    else:
        (write_jsonl if suffix == "jsonl" else write_json)(path, rows_of(layout))
    alone, joined = read_saved(path), read_saved(path, data=DATA)
    assert texts(alone) == texts(joined) == EXPECTED
    assert [problem.answer for problem in alone.problems] == [p["answer"] for p in PROBLEMS]
    assert list(joined.problems) == DATA
    assert alone.finished is None
    assert alone.num_tokens is None
    assert "whether answers were finished is not known" in alone.notes[-1]


def test_answers_without_a_problem_s_text_are_joined_by_id(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": p["id"], "output": "1"} for p in PROBLEMS[:3]])
    saved = read_saved(path, data=DATA)
    assert list(saved.problems) == DATA[:3]
    assert "1 of 4 problems of the data have no answer here" in saved.notes
    with pytest.raises(InputError, match=r"answers to 1 of 3 problems that are not in the data, .* 'p2'"):
        read_saved(path, data=DATA[:2])


def test_an_id_whose_text_is_another_problem_s_is_not_joined(tmp_path):
    rows = [{"id": "p0", "problem": "Something else?", "output": "1"}]
    with pytest.raises(InputError, match=r"1 of 1 problems that are not in the data, the first of them 'p0'"):
        read_saved(write_jsonl(tmp_path / "a.jsonl", rows), data=DATA)


def test_an_evaluation_s_directory_has_its_problems_beside_its_samples(tmp_path):
    write_evaluation(tmp_path / "run", ["b", "a"])
    files = sample_files(tmp_path / "run")
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl"]
    saved = read_saved(files[0])
    assert [problem.answer for problem in saved.problems] == [p["answer"] for p in PROBLEMS]
    assert saved.finished == ((True, False),) * 4
    assert saved.num_tokens == ((3, 4),) * 4
    assert saved.notes == ()
    with files[0].open("ab") as file:
        file.write(b'{"id": "p0", "sam')
    assert texts(read_saved(files[0])) == texts(saved)
    assert read_saved(files[0]).notes == ("the last line is cut off, and left out",)


@pytest.mark.parametrize(
    ("fields", "finished"),
    [
        ({"finished": False}, False),
        ({"truncated": True}, False),
        ({"finish_reason": "length"}, False),
        ({"finish_reason": "stop"}, True),
    ],
)
def test_whether_an_answer_was_finished_is_told_in_several_ways(tmp_path, fields, finished):
    row = {**PROBLEMS[0], "response": "1", "token_ids": [1, 2], **fields}
    saved = read_saved(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert saved.finished == ((finished,),)
    assert saved.completions[0][0].finished is finished
    assert saved.num_tokens == ((2,),)
    listed = {**PROBLEMS[0], "responses": ["1", "2"], "finish_reasons": ["stop", "length"]}
    assert read_saved(write_jsonl(tmp_path / "b.jsonl", [listed])).finished == ((True, False),)


def test_problems_may_have_different_numbers_of_answers_and_that_is_said(tmp_path):
    rows = [{**PROBLEMS[0], "responses": ["1"]}, {**PROBLEMS[1], "responses": ["1", "2", "3"]}]
    saved = read_saved(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [len(given) for given in saved.completions] == [1, 3]
    assert "problems have from 1 to 3 answers" in saved.notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"problem": "?", "verdict": "x"}],
            r"line 1 has the fields problem, verdict, and none of them holds answer",
        ),
        ([{"response": "x"}], "line 1 does not tell which problem it answers"),
        ([7], "line 1 is a int; expected an object"),
        (["{"], "line 1 is not JSON"),
        ([], "holds no answers"),
        ([{"problem": "?", "responses": [7]}], "has 7 among its responses"),
        ([{"problem": "?", "responses": []}], "has no answer to problem"),
        ([{"problem": "?", "answer": {"a": 1}, "response": "x"}], "as answer; expected text or a number"),
        ([{"problem": 7, "response": "x"}], "has 7 as its problem"),
        ([{"id": 1, "sample": 0, "text": "x"}] * 2, "line 2 has sample 0 of problem '1' a second time"),
        (
            [{"id": 1, "answer": 1, "text": "x"}, {"id": 1, "answer": 2, "text": "x"}],
            "line 2 has another right answer for problem '1' than a row before it",
        ),
    ],
)
def test_a_wrong_layout_is_told_with_what_was_found(tmp_path, rows, message):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{row if row == '{' else json.dumps(row)}\n" for row in rows))
    with pytest.raises(InputError, match=message):
        read_saved(path)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        sample_files(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match=r"holds no samples/\*\.jsonl"):
        sample_files(tmp_path)
    (tmp_path / "a.csv").write_text("x\n")
    with pytest.raises(InputError, match=r"ends in \.csv; rows are read from \.jsonl, \.json, \.parquet"):
        read_saved(Path(tmp_path / "a.csv"))
