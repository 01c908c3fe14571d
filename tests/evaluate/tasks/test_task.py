"""What a task loads, from real files, and what it refuses before anything is generated."""

import json

import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tasks import TASKS, Task, open_task
from ckptlin.grading import Completion
from ckptlin.problems import load_problems
from ckptlin.problems.sums import build_tokenizer
from tests.livecodebench import livecodebench_row


def jsonl(path, rows):
    path.write_text("".join(f"{row}\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_sampled_as_the_paper_does_but_the_demo_s(name):
    task = TASKS[name]
    assert task.name == name
    assert task.description
    drawn = Sampling(num_samples=task.sampling.num_samples)
    if name == "sums":
        drawn = Sampling(1.0, 1.0, max_tokens=16, num_samples=4)
    assert task.sampling == drawn
    if name.startswith("aime"):
        assert drawn.num_samples == 64


def test_sums_are_those_of_the_test_split_and_every_answer_fits():
    problems = TASKS["sums"].load()
    assert problems == load_problems("sums:test", limit=1000)
    pytest.importorskip("transformers", reason="counts tokens; the extra `models` has it")
    tokenizer = build_tokenizer()
    longest = max(len(tokenizer(problem.answer)["input_ids"]) + 1 for problem in problems)
    assert longest <= TASKS["sums"].sampling.max_tokens


def test_livecodebench_asks_grades_and_records_its_window(tmp_path):
    rows = [
        livecodebench_row("old", "2024-07-01"),
        livecodebench_row("stdin", "2024-08-01"),
        livecodebench_row("method", "2025-01-31", starter_code="class Solution:\n    def double(self, n):\n"),
    ]
    path = jsonl(tmp_path / "lcb.jsonl", rows)
    task = open_task("livecodebench", data=path, window=("2024-08-01", "2025-01-31"))
    assert json.loads(json.dumps(task.to_dict()))["window"] == ["2024-08-01", "2025-01-31"]
    problems = task.load()
    assert [problem.id for problem in problems] == ["stdin", "method"]
    (message,) = task.prompt_template.prompt(problems[0])
    assert message["role"] == "user"
    programs = (
        "print(2 * int(input()))",
        "class Solution:\n    def double(self, n):\n        return 2 * n",
        "print(4)",  # the public test alone
    )
    given = [Completion(f"So:\n```python\n{program}\n```\n", True) for program in programs]
    with task.open_grader() as grader:
        assert grader.grade(given, [problems[0], problems[1], problems[0]]) == [1.0, 1.0, 0.0]


def test_a_window_asks_for_dates(tmp_path):
    path = jsonl(tmp_path / "lcb.jsonl", [livecodebench_row("a", "2024-08-01") | {"contest_date": "soon"}])
    with pytest.raises(InputError, match="problem a has 'soon' as contest_date"):
        open_task("livecodebench", data=path, window="2024-08-01:2024-09-01").load()
    with pytest.raises(InputError, match=r"problem .* has no date"):
        open_task("sums", limit=3, window="2024-08-01:2024-09-01").load()


@pytest.mark.parametrize(
    ("name", "rows", "error", "message"),
    [
        ("aime24", [{"question_text": "1?"}], InputError, "line 1 has the fields question_text, but none of"),
        ("aime24", [{"problem": "1?"}], InputError, "the grader math compares with answers, but 1 of 1"),
        (
            "math500",
            [{"problem": "1?", "answer": "1", "unique_id": "a"}] * 2,
            InputError,
            "has the id 'a', which",
        ),
        ("gsm8k", [{"question": "1?", "answer": "no mark"}], InputError, "1 of 1 problems have none"),
        ("livecodebench", [{"question_content": "1?"}], InputError, "problem 0 has no tests"),
        ("aime25", [], InputError, "holds no problem"),
        ("aime25", ["{"], InputError, "line 1 is not JSON"),
        ("aime25", ['"text"'], InputError, "line 1 is 'text', but a problem is an object"),
    ],
)
def test_data_that_lack_something_are_refused(tmp_path, name, rows, error, message):
    pytest.importorskip("math_verify", reason="the grader of most; the extra `eval` has it")
    with pytest.raises(error, match=message):
        open_task(name, data=jsonl(tmp_path / "data.jsonl", rows)).load()


def test_columns_are_named_by_the_user(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", [{"frage": "1+1?", "antwort": "2"}])
    columns = {"problem": "frage", "answer": "antwort"}
    task = open_task(path, columns=columns, grader="exact")
    assert task.load()[0].answer == "2"
    assert task.to_dict()["columns"] == columns
    with pytest.raises(SelectionError, match="has no column 'result'"):
        open_task(path, columns={"problem": "frage", "answer": "result"}, grader="exact").load()


def test_a_problem_with_earlier_messages_needs_a_template_for_a_chat(tmp_path):
    chat = [{"role": role, "content": role} for role in ("system", "user")]
    path = jsonl(tmp_path / "chat.jsonl", [{"prompt": chat, "answer": "2"}])
    assert open_task(path, grader="exact").load()[0].problem == "user"
    with pytest.raises(InputError, match="problem 0 comes with earlier chat messages"):
        open_task(path, grader="exact", template="plain").load()


def test_an_unknown_data_set_is_refused():
    with pytest.raises(SelectionError, match="no data set 'aime'"):
        Task("mine", "mine.jsonl", data_set="aime")
