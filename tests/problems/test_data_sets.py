import json

import pytest

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems import TEMPLATES, load_problems
from ckptlin.problems.data_sets import DATA_SETS, get_data_set
from ckptlin.problems.prepare import prepare
from ckptlin.problems.window import as_window
from tests.livecodebench import livecodebench_row

LCB = DATA_SETS["livecodebench"]
STARTER = "class Solution:\n    def double(self, n: int) -> int:\n        "
REPOSITORY = "livecodebench/code_generation_lite"


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    """Three problems of three months, the last with starter code."""
    dates = {"a": "2024-07-31", "b": "2024-08-01", "c": "2025-01-31"}
    made = [livecodebench_row(name, day, starter_code=STARTER * (name == "c")) for name, day in dates.items()]
    return jsonl(tmp_path / "lcb.jsonl", made)


@pytest.fixture
def repository(tmp_path):
    """A directory as the hub's repository: a file for each release, with one problem."""
    directory = tmp_path / "repository"
    directory.mkdir()
    for number in range(1, 7):
        name = f"test{number if number > 1 else ''}.jsonl"
        jsonl(directory / name, [livecodebench_row(f"r{number}", f"2024-0{number}-01")])
    return directory


@pytest.mark.parametrize("data_set", DATA_SETS.values(), ids=DATA_SETS)
def test_each_has_a_template_that_there_is_and_says_what_it_is(data_set):
    assert data_set.template in TEMPLATES
    assert data_set.description
    assert get_data_set(data_set.name) is data_set


def test_livecodebench_says_how_a_program_gets_its_input(rows):
    first, _, last = LCB.load(data=rows)
    assert first.id == "a"
    assert first.problem.startswith("Double a number (a).\n\n")
    assert "from stdin" in first.problem
    assert "to stdout" in first.problem
    assert "stdin" not in last.problem
    assert last.problem.endswith(f"```python\n{STARTER.strip(chr(10))}\n```")
    prompt = TEMPLATES["code"].render(last)
    assert last.problem in prompt
    assert prompt.endswith("one block that begins with ```python and ends with ```.")


def test_what_was_prepared_is_read_as_it_is(rows, tmp_path):
    done = prepare("livecodebench", tmp_path / "data", data=rows, window=("2024-08-01", "2025-01-31"))
    assert done.path == tmp_path / "data/livecodebench.jsonl"
    assert (done.num_read, done.num_written, done.num_unanswerable) == (2, 2, 0)
    assert LCB.load(data=done.path) == load_problems(done.path)
    assert [p.problem for p in LCB.load(data=done.path)] == [p.problem for p in LCB.load(data=rows)[1:]]
    raw = jsonl(tmp_path / "gsm8k.jsonl", [{"question": "A lot?", "answer": "Much.\n#### 1,234"}])
    for source in (raw, prepare("gsm8k", tmp_path / "data", data=raw).path):
        (problem,) = DATA_SETS["gsm8k"].load(data=source)
        assert (problem.answer, problem.solution) == ("1234", "Much.")
    numbers = jsonl(tmp_path / "numbers.jsonl", [{"question": "A lot?", "answer": "1234"}])
    assert DATA_SETS["gsm8k"].load(data=numbers)[0].answer == "1234"


def test_what_has_no_tests_is_left_out_and_verl_has_no_place_for_any(tmp_path):
    bare = livecodebench_row("b", "2024-08-01", private=False) | {"public_test_cases": ""}
    path = jsonl(tmp_path / "lcb.jsonl", [livecodebench_row("a", "2024-08-01"), bare])
    assert prepare("livecodebench", tmp_path, data=path, overwrite=True, limit=2).num_unanswerable == 1
    with pytest.raises(InputError, match="livecodebench has tests and no answers, which verl's format"):
        prepare("livecodebench", tmp_path, data=path, format="verl")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("", ["r1", "r2", "r3", "r4", "r5"]),
        ("/release_v1", ["r1"]),
        ("/release_v6", ["r1", "r2", "r3", "r4", "r5", "r6"]),
        ("/release_latest", ["r1", "r2", "r3", "r4", "r5", "r6"]),
        ("/v4", ["r4"]),
        ("/v4_v5", ["r4", "r5"]),
    ],
)
def test_a_release_is_chosen_by_the_configuration(repository, release, expected):
    assert [problem.id for problem in LCB.load(data=f"{repository}{release}")] == expected


@pytest.mark.parametrize("release", ["release_v0", "release_v7", "v5_v4", "latest", "v45"])
def test_a_release_that_there_is_not_is_refused(release):
    with pytest.raises(SelectionError, match=rf"has no release '{release}'; choose release_v1 to release_v6"):
        LCB.load(data=f"{REPOSITORY}/{release}")


def test_a_file_that_a_directory_lacks_is_named(repository):
    (repository / "test3.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no test3\.jsonl; it takes test\.jsonl, test2\.jsonl, test3"):
        LCB.load(data=repository)


def test_a_limit_counts_what_is_in_the_window_and_the_rest_is_said_where_none_is(repository):
    window = as_window("2024-02-01:2024-04-01")
    assert [problem.id for problem in LCB.load(data=repository, window=window)] == ["r2", "r3", "r4"]
    assert [problem.id for problem in LCB.load(data=repository, window=window, limit=2)] == ["r2", "r3"]
    with pytest.raises(InputError, match=r"holds no problem that was asked for; 5 others are left out"):
        LCB.load(data=repository, window=as_window("2030-01-01:2030-02-01"))
