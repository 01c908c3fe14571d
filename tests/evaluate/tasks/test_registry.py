import json
import sys

import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.evaluate.tasks import TASKS, Task, all_tasks, open_task
from ckptlin.problems import draw_sums


def install(tmp_path, monkeypatch, entry_points):
    """Put a package beside Python's own whose metadata name entry points, as an installed one's do."""
    (tmp_path / "added_tasks.py").write_text(
        "from ckptlin.evaluate.tasks import Task\n\n"
        "TASK = Task('mine', 'mine.jsonl', grader='exact')\n"
        "AGAIN = Task('aime24', 'mine.jsonl')\n"
        "NUMBER = 7\n\n"
        "def made():\n    return Task('made', 'sums:test', template='plain', grader='exact')\n\n"
        "def nothing():\n    return None\n\n"
        "def broken():\n    raise KeyError('x')\n"
    )
    metadata = tmp_path / "added_tasks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: added-tasks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ckptlin.tasks]\n" + entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "added_tasks", raising=False)


@pytest.fixture(autouse=True)
def _fresh():
    all_tasks.cache_clear()
    yield
    all_tasks.cache_clear()


def test_packages_add_tasks_and_functions_that_make_them(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "a = added_tasks:TASK\nb = added_tasks:made\n")
    assert set(all_tasks()) == {*TASKS, "mine", "made"}
    assert open_task("mine").grader == "exact"
    assert open_task("made", limit=2).load() == draw_sums(2, split="test")


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ("seven = added_tasks:NUMBER\n", "is a int, neither a Task nor a function"),
        ("none = added_tasks:nothing\n", "returned a NoneType and no Task"),
        ("broken = added_tasks:broken\n", "raised KeyError: 'x' when called for its task"),
        ("again = added_tasks:AGAIN\n", "takes the name of the task aime24, which is there already"),
        ("type = ckptlin.evaluate.tasks:Task\n", "is a type, neither a Task"),
    ],
)
def test_an_entry_point_that_is_no_task_is_told(tmp_path, monkeypatch, entry_points, message):
    install(tmp_path, monkeypatch, entry_points)
    with pytest.raises(InputError, match=message):
        all_tasks()


def test_a_task_in_python_is_named_by_its_place(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "")
    assert open_task("added_tasks:TASK") == Task("mine", "mine.jsonl", grader="exact")
    assert open_task("added_tasks:made").name == "made"
    for name, message in (
        ("added_tasks:NUMBER", "added_tasks:NUMBER is a int, neither a Task"),
        ("added_tasks:absent", "the module added_tasks has no absent; name a task that it has"),
        ("no_such_module:TASK", "there is no module no_such_module"),
        ("org/name:test", "'org/name:test' names no task; write package.module:task"),
    ):
        with pytest.raises(InputError, match=message):
            open_task(name)


def test_a_file_of_ones_own_is_put_in_a_box_and_graded_by_math_unless_something_else_is_asked_for(tmp_path):
    pytest.importorskip("math_verify", reason="the grader of a file; the extra `eval` has it")
    path = tmp_path / "mine.jsonl"
    path.write_text('{"problem": "1+1?", "answer": 2}\n')
    task = open_task(path)
    assert (task.name, task.template, task.grader) == ("mine", "boxed", "math")
    assert task.load()[0].answer == "2"
    other = open_task(path, template="Q: {problem}", grader="exact", grader_parameters={"strip": True})
    assert (other.prompt_template.text, other.grader) == ("Q: {problem}", "exact")
    assert other.grader_parameters == {"strip": True}


def test_the_same_data_may_be_a_file_and_its_fields_are_the_data_set_s_own(tmp_path):
    pytest.importorskip("math_verify", reason="the grader of GSM8K; the extra `eval` has it")
    path = tmp_path / "gsm8k.json"
    path.write_text(json.dumps([{"question": f"{i}?", "answer": f"So.\n#### {i}"} for i in range(3)]))
    task = open_task("gsm8k", data=path, limit=2)
    assert [problem.answer for problem in task.load()] == ["0", "1"]
    assert task.to_dict()["source"] == str(path)
    assert task.sampling == TASKS["gsm8k"].sampling


def test_another_split_stands_in_the_source():
    assert open_task("gsm8k", split="train").source == "openai/gsm8k/main:train"
    assert open_task("sums", split="train", limit=3).load() == draw_sums(3, split="train")
    with pytest.raises(SelectionError, match="gsm8k has no split 'dev'; it has test, train"):
        open_task("gsm8k", split="dev")


def test_another_grader_does_not_take_the_parameters_of_the_one_before():
    task = Task("t", "sums", grader="exact", grader_parameters={"strip": True})
    assert task.open_grader().name == "exact"
    with pytest.raises(SelectionError, match="there is no task 'aime'; choose aime24, aime25, gsm8k"):
        open_task("aime")
    assert open_task("sums", grader="math").grader_parameters == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "a limit of 0 leaves no problem of sums"),
        ({"template": "box"}, "no prompt template 'box'"),
        ({"window": "2024"}, "the window '2024' is none"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_task_is_opened(arguments, message):
    with pytest.raises(InputError, match=message):
        open_task("sums", **arguments)
