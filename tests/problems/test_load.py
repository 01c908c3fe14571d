import json
import os
import subprocess
import sys

import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems import Problem, load_problems

ROWS = [
    {"problem": "1+1?", "answer": "2", "solution": "One and one.", "id": "a", "level": 1},
    {"problem": "2+2?", "answer": "4", "solution": "Two and two.", "id": "b", "level": 2},
]
PROBLEMS = tuple(
    Problem(row["problem"], row["answer"], row["solution"], row["id"], {"level": row["level"]}) for row in ROWS
)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet; the extra `eval` has it")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture(params=["jsonl", "json", "parquet"])
def save(request, tmp_path):
    """Save rows in each of the formats."""

    def write(rows):
        path = tmp_path / f"data.{request.param}"
        if request.param == "json":
            path.write_text(json.dumps(rows))
            return path
        return (jsonl if request.param == "jsonl" else parquet)(path, rows)

    return write


def test_every_format_gives_the_same_problems(save):
    assert load_problems(save(ROWS)) == PROBLEMS
    assert load_problems(str(save(ROWS)), limit=1) == PROBLEMS[:1]


def test_written_as_plain_data_they_are_read_back(tmp_path):
    path = jsonl(tmp_path / "again.jsonl", [problem.to_dict() for problem in PROBLEMS])
    assert load_problems(path) == PROBLEMS


@pytest.mark.parametrize("question", ["problem", "question", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "ground_truth"])
def test_the_names_that_public_data_have_are_known(save, question, answer):
    (problem,) = load_problems(save([{question: "1+1?", answer: 2}]))
    assert problem == Problem("1+1?", "2", id="0")


def test_other_names_are_given(save):
    rows = [{"question_content": "1+1?", "answer": "no", "result": "2", "question_id": "q7"}]
    columns = {"problem": "question_content", "answer": "result", "id": "question_id"}
    assert load_problems(save(rows), columns=columns) == (Problem("1+1?", "2", None, "q7", {"answer": "no"}),)


def test_of_several_names_the_first_counts_and_the_rest_is_kept(save):
    (problem,) = load_problems(save([{"prompt": "Solve: 1+1?", "problem": "1+1?", "answer": "2"}]))
    assert problem.problem == "1+1?"
    assert problem.extra == {"prompt": "Solve: 1+1?"}


def test_verl_s_layout_is_understood(save):
    row = {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"split": "train", "index": 7},
    }
    (problem,) = load_problems(save([row]), needs="answer")
    assert (problem.problem, problem.answer, problem.id) == ("1+1?", "2", "0")
    assert problem.extra["data_source"] == "gsm8k"
    assert "earlier_messages" not in problem.extra


def test_of_a_conversation_the_last_message_is_the_problem_and_the_others_are_kept(save):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    (problem,) = load_problems(save([{"prompt": messages}]))
    assert problem.problem == "1+1?"
    assert problem.extra == {"earlier_messages": messages[:1]}


def test_a_byte_order_mark_and_empty_lines_are_no_content(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"problem": "1+1?"}\n\n{"problem": "2+2?"}\n  \n')
    assert [problem.id for problem in load_problems(path)] == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "1+1?"', "line 2 is not JSON"),
        ("[1, 2]", r"line 2 is \[1, 2\], but a problem is an object"),
        ('{"text": "1+1?"}', "line 2 has the fields text, but none of problem, question, prompt"),
        ("{}", r"line 2 has the fields \(none\), but none of"),
        ('{"problem": " "}', "line 2 has an empty problem"),
        ('{"problem": 7}', "line 2 has 7 as problem; expected text or chat messages"),
        ('{"problem": []}', r"line 2 has \[\] as problem"),
        ('{"problem": "a", "answer": true}', "line 2 has True as answer; expected text or a number"),
        ('{"problem": "a", "answer": ["2"]}', r"line 2 has \['2'\] as answer"),
        ('{"prompt": [{"role": "user"}]}', "line 2 has {'role': 'user'} in prompt"),
        (
            '{"prompt": [{"role": "assistant", "content": "a"}]}',
            "line 2 has a prompt that ends with the role assist",
        ),
        ('{"prompt": "a", "reward_model": {"ground_truth": ["2", "3"]}}', "as reward_model.ground_truth"),
    ],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"problem": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match=message) as caught:
        load_problems(path)
    assert str(caught.value).startswith(str(path))


def test_all_malformed_lines_are_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "fine"}\nno\n{"problem": "fine too"}\nno\nnone\n')
    with pytest.raises(InputError, match=r"line 2 is not JSON .* so are line 4, line 5"):
        load_problems(path)
    path.write_text("no\n" * 30)
    with pytest.raises(InputError, match="line 11, and 19 more"):
        load_problems(path)


def test_text_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"problem": "fine"}\n{"problem": "caf\xe9"}\n')
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        load_problems(path)


def test_two_of_one_id_are_refused(save):
    with pytest.raises(InputError, match=r"2 has the id 'a', which (line|entry|row) 1 has already"):
        load_problems(save([ROWS[0], {**ROWS[1], "id": "a"}]))


def test_data_without_answers_is_refused_where_they_are_needed(save):
    path = save(
        [ROWS[0], {"problem": "2+2?", "answer": None, "id": "b"}, {"problem": "3?", "answer": "", "id": "c"}]
    )
    assert [p.answer for p in load_problems(path)] == ["2", None, None]
    with pytest.raises(InputError, match=r"2 of 3 problems of .* have no answer, the first of them problem b"):
        load_problems(path, needs="answer")
    with pytest.raises(InputError, match="have no solution"):
        load_problems(path, needs="solution")
    with pytest.raises(SelectionError, match="not for 'reward'"):
        load_problems(path, needs="reward")


def test_columns_that_are_not_there_are_named(save):
    with pytest.raises(SelectionError, match=r"has no column 'result' to take as answer; it has .*problem"):
        load_problems(save(ROWS), columns={"answer": "result"})
    with pytest.raises(SelectionError, match="no field 'question' to map a column to"):
        load_problems(save(ROWS), columns={"question": "problem"})
    with pytest.raises(InputError, match="none of result"):
        load_problems(save(ROWS), columns={"problem": "result"})


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("missing.jsonl", {}, "there is no file missing.jsonl"),
        ("data.csv", {}, "data.csv ends in .csv; problems are read from .jsonl, .json, .parquet"),
        ("nothing", {}, "neither a file"),
        ("empty.jsonl", {}, "holds no problem"),
        ("empty.jsonl:train", {}, "has no splits"),
        ("empty.jsonl", {"split": "train"}, "has no splits"),
        ("sums:train", {"split": "test"}, "names the split train, but split test"),
        ("sums", {"columns": {"answer": "sum"}}, "sums have no columns"),
        ("sums", {"limit": 0}, "a limit of 0 leaves no problem"),
        ("object.json", {}, "holds a JSON dict; expected a list"),
        ("lines.json", {}, r"line 2 is not JSON .* name it .jsonl"),
        ("broken.parquet", {}, "no readable parquet file"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, source, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("problem\n1+1?\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "object.json").write_text('{"problem": "1+1?"}')
    (tmp_path / "lines.json").write_text('{"problem": "1+1?"}\n{"problem": "2+2?"}')
    (tmp_path / "broken.parquet").write_text("PAR1")
    if "parquet" in source:
        pytest.importorskip("pyarrow", reason="reads parquet; the extra `eval` has it")
    with pytest.raises(InputError, match=message):
        load_problems(source, **arguments)


# --- data sets ----------------------------------------------------------------------------------------

PROGRAM = """
import json, sys
from ckptlin.errors import CkptlinError
from ckptlin.problems import load_problems
for source in sys.argv[1:]:
    try:
        print(json.dumps([problem.to_dict() for problem in load_problems(source)]))
    except CkptlinError as error:
        print(type(error).__name__, error)
"""


def loaded_offline(tmp_path, *sources):
    """Load data sets by the real library in a process without a network, whatever this machine has cached."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *sources]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_data_set_is_loaded_by_its_splits_and_one_that_cannot_be_reached_is_told(tmp_path):
    pytest.importorskip("datasets", reason="reads data sets; the extra `eval` has it")
    # `load_dataset` takes a directory for what it takes from the hub.
    for name, splits in (("org/two", ("train", "test")), ("org/one", ("test",))):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        for split in splits:
            jsonl(directory / f"{split}.jsonl", [{**row, "split": split} for row in ROWS])
    chosen, unchosen, no_split, only, unreachable = loaded_offline(
        tmp_path, "org/two:test", "org/two", "org/two:dev", "org/one", "org/nowhere/main:test"
    )
    assert [row["split"] for row in json.loads(chosen)] == ["test", "test"]
    assert (
        unchosen == "InputError the data set org/two has the splits train, test; choose one, as in org/two:test"
    )
    assert no_split == "SelectionError the data set org/two has no split 'dev'; it has train, test"
    assert [row["problem"] for row in json.loads(only)] == ["1+1?", "2+2?"]
    assert unreachable.startswith("InputError the data set org/nowhere/main could not be loaded: ")
    assert unreachable.endswith("or give the same data as a file")


def test_files_of_a_repository_that_cannot_be_reached_are_told(tmp_path):
    pytest.importorskip("huggingface_hub", reason="reads data sets; the extra `eval` has it")
    program = PROGRAM.replace("load_problems(source)", "load_problems(source, files=['test.jsonl'])")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", program, "org/nowhere"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.startswith("InputError the data set org/nowhere could not be loaded: ")
    assert told.endswith("or give the same data as a file\n")
