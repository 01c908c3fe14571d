"""Grading of saved answers, end to end, with the real graders."""

import json
import sys
import threading
import uuid

import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.grade import grade
from tests.saved_answers import PROBLEMS, answered, write_evaluation, write_json, write_jsonl

needs_math = pytest.mark.usefixtures("_math")


@pytest.fixture
def _math():
    pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")


def answers(path, right, of=4, problems=PROBLEMS):
    return write_jsonl(path, ({**p, "responses": answered(right, of, p["answer"])} for p in problems))


@needs_math
def test_files_are_graded_and_compared_with_the_first(tmp_path):
    before, after = answers(tmp_path / "before.jsonl", 1), answers(tmp_path / "after.jsonl", 3)
    result = grade([before, after], ks=[1, 2])
    first, second = result.files
    assert (first.label, second.label) == ("before", "after")
    assert first.scores == ((1.0, 0.0, 0.0, 0.0),) * 4
    assert first.summary.estimates["avg@4"].value == 0.25
    assert second.summary.estimates["pass@2"].value == 1.0
    # Right answers 3 of 4; a vote of two is right if both are, or half of the time if they differ.
    assert second.summary.estimates["maj@2"].value == pytest.approx(0.75)
    (comparison,) = result.comparisons
    assert comparison.difference == 0.5
    assert result.verdicts()[0].startswith("after solves more than before: +50.0 points")
    told = json.loads(json.dumps(result.to_dict()))
    assert told["comparisons"][0]["verdict"] == result.verdicts()[0]
    assert [file["label"] for file in told["files"]] == ["before", "after"]


@needs_math
def test_each_answer_s_score_is_written_and_an_empty_answer_is_wrong_and_counted(tmp_path):
    rows = [{**PROBLEMS[1], "responses": [r"\boxed{2}", "", " \n", "none"]}]
    out = tmp_path / "scores.jsonl"
    (file,) = grade([write_json(tmp_path / "a.json", rows)], out=out).files
    assert file.num_empty == 2
    assert "2 of 4 answers are empty; they count as wrong" in file.notes
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["sample"], row["score"], row["answer"]) for row in written] == [
        ("p1", 0, 1.0, "2"),
        ("p1", 1, 0.0, None),
        ("p1", 2, 0.0, None),
        ("p1", 3, 0.0, None),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_empty_answer_is_wrong_by_any_grader(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "problem": "?", "answer": "1", "responses": ["", "1"]}])
    (file,) = grade([path], grader=f"{__name__}:always").files
    assert file.scores == ((0.0, 1.0),)


def always(completion, problem):
    return 1.0


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[always.__module__])


def test_the_grader_is_the_task_s_that_of_an_evaluation_s_record_or_the_one_asked_for(tmp_path):
    run = write_evaluation(tmp_path / "run", ["a"], grader="exact")
    assert grade([run]).grader == "exact"
    result = grade([run], grader="exact", grader_parameters={"strip": True})
    assert result.grader_parameters == {"strip": True}
    sums = [{"id": "1", "problem": "3+7+5+9+2=", "output": "10;15;24;26"}]
    data = write_jsonl(tmp_path / "sums.jsonl", [{"problem": "3+7+5+9+2=", "answer": "10;15;24;26"}])
    by_task = grade([write_jsonl(tmp_path / "a.jsonl", sums)], task="sums", data=data)
    assert (by_task.grader, by_task.files[0].scores) == ("exact", ((1.0,),))


def test_other_problems_are_not_compared_unless_on_those_that_both_have(tmp_path):
    paths = [answers(tmp_path / f"{i}.jsonl", 1, problems=PROBLEMS[i : i + 3]) for i in range(2)]
    with pytest.raises(InputError, match=r"has 3 problems and .* 3, of which 2 are the same; .*--common"):
        grade(paths, grader="exact")
    result = grade(paths, grader="exact", common=True)
    assert result.comparisons[0].num_problems == 2
    assert "compared on the 2 problems that both have" in result.notes[0]
    apart = [paths[0], answers(tmp_path / "c.jsonl", 1, problems=PROBLEMS[3:])]
    with pytest.raises(InputError, match="of which 0 are the same; leave one out"):
        grade(apart, grader="exact", common=True)


def test_what_cannot_be_graded_is_refused_before_anything_is_written(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "response": "x"}])
    out = tmp_path / "scores.jsonl"
    with pytest.raises(InputError, match="the grader exact compares with answers, but 1 of 1"):
        grade([path], grader="exact", out=out)
    with pytest.raises(InputError, match="was given twice"):
        grade([answers(tmp_path / "b.jsonl", 1)] * 2, grader="exact")
    with pytest.raises(InputError, match="lies in no directory"):
        grade([path], out=tmp_path / "absent" / "x")
    with pytest.raises(InputError, match="no file to grade"):
        grade([])
    assert not out.exists()


# --- what answers can do --------------------------------------------------------------------------------


@needs_math
def test_an_answer_that_hangs_the_grader_is_contained_and_counted_off_the_main_thread_too(tmp_path):
    texts = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{4/2}", r"\boxed{\sqrt{3}}"]
    path = write_jsonl(tmp_path / "a.jsonl", [{**PROBLEMS[1], "responses": texts}])
    found = []
    parameters = {"time_limit_s": 1, "memory": "1GiB", "num_workers": 1}
    thread = threading.Thread(target=lambda: found.append(grade([path], grader_parameters=parameters)))
    thread.start()
    thread.join()
    (file,) = found[0].files
    assert file.scores == ((0.0, 1.0, 0.0),)
    assert any(note.startswith("1 of 3 answers") and "count as wrong" in note for note in file.notes)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is the Linux kernel's")
def test_programs_that_do_harm_are_contained_and_counted(tmp_path):
    outside = tmp_path / "outside"
    mark = f"ckptlin-{uuid.uuid4().hex}"
    programs = {
        "right": "print(2 * int(input()))",
        "forks": "import os\nwhile True:\n    os.fork()",
        "allocates": "x = bytearray(10 << 30)\nprint(4)",
        "sleeps": f"import time\ntime.sleep(1000)  # {mark}",
        "spins": "while True:\n    pass",
        "writes": f"open({str(outside)!r}, 'w').write('x')\nprint(4)",
        "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\nprint(4)",
        "no code": None,
    }
    texts = ["I cannot." if code is None else f"```python\n{code}\n```" for code in programs.values()]
    problem = {"id": "1", "problem": "Double.", "tests": [{"input": "2", "output": "4"}]}
    path = write_jsonl(tmp_path / "a.jsonl", [{**problem, "responses": texts}])
    parameters = {"time_limit_s": 1, "wall_limit_s": 3, "memory": "256MiB", "num_workers": 1}
    (file,) = grade([path], grader="code", grader_parameters=parameters).files
    scores = dict(zip(programs, file.scores[0], strict=True))
    held = not outside.exists()
    if held:
        assert scores == dict.fromkeys(programs, 0.0) | {"right": 1.0}
    else:
        # Without namespaces a program may write wherever its user may, and the notes say so.
        assert any("could write wherever their user may" in note for note in file.notes)
        assert scores == dict.fromkeys(programs, 0.0) | {"right": 1.0, "writes": 1.0}
    counted = " ".join(file.notes)
    for what in ("have no block of code", "ran longer than 1 s", "needed more than 256", "ended in an error"):
        assert what in counted, counted
    assert file.answers is None
    assert not any(name.startswith("maj@") for name in file.summary.estimates)
