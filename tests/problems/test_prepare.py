import json
import os

import pytest

from ckptlin.errors import DiskFullError, InputError, OutputExistsError, SelectionError
from ckptlin.problems import draw_sums, in_test_split, load_problems
from ckptlin.problems.data_sets import DATA_SETS
from ckptlin.problems.prepare import prepare

GSM8K = [
    {"question": "Half of 48?", "answer": "It is 48/2 = <<48/2=24>>24.\n#### 24"},
    {"question": "A lot?", "answer": "Much.\n#### 1,234"},
    {"question": "Half  of\n48?", "answer": "Again.\n#### 24"},
    {"question": "Half of 48?", "answer": "Wrong.\n#### 12"},
    {"question": "No answer?", "answer": "None."},
    {"question": "An empty one?", "answer": "None.\n####"},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def gsm8k(tmp_path):
    return jsonl(tmp_path / "raw.jsonl", GSM8K)


def test_gsm8k_s_answer_follows_its_mark_and_what_is_left_out_is_counted(gsm8k, tmp_path):
    result = prepare("gsm8k", tmp_path / "data", data=gsm8k)
    assert result.path == tmp_path / "data/gsm8k-test.jsonl"
    assert (result.num_read, result.num_written) == (6, 2)
    assert (result.num_duplicates, result.num_conflicting, result.num_unanswerable) == (2, 1, 2)
    assert result.num_bytes == result.path.stat().st_size
    first, second = load_problems(result.path, needs="solution")
    assert (first.problem, first.answer, first.id) == ("Half of 48?", "24", "0")
    assert first.solution == "It is 48/2 = <<48/2=24>>24."
    assert second.answer == "1234"
    assert result.to_dict()["path"] == str(result.path)


@pytest.mark.parametrize("name", sorted(set(DATA_SETS) - {"sums", "gsm8k", "livecodebench"}))
def test_the_others_have_our_fields_already(name, tmp_path):
    rows = [
        {"problem": "1+1?", "answer": 2, "solution": "So.", "level": 5},
        {"problem": "2+2?", "answer": None},
    ]
    result = prepare(name, tmp_path, data=jsonl(tmp_path / "raw.jsonl", rows))
    assert result.path == tmp_path / f"{name}.jsonl"
    assert [json.loads(line) for line in result.path.read_text().splitlines()] == [
        {"id": "0", "problem": "1+1?", "answer": "2", "solution": "So.", "level": 5}
    ]
    assert result.num_unanswerable == 1


def test_sums_are_made_on_the_spot_and_no_training_sum_is_for_testing(tmp_path):
    test = prepare("sums", tmp_path, split="test", limit=50, seed=3)
    assert test.path == tmp_path / "sums-test.jsonl"
    assert load_problems(test.path) == draw_sums(50, split="test", seed=3)
    train = prepare("sums", tmp_path, limit=50)
    assert not any(in_test_split(problem.problem) for problem in load_problems(train.path))


def test_verl_s_parquet_has_the_fields_that_it_reads_and_is_read_back(gsm8k, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes parquet; the extra `eval` has it")
    result = prepare("gsm8k", tmp_path, data=gsm8k, format="verl", split="train")
    assert result.path == tmp_path / "gsm8k-train.parquet"
    first, _ = parquet.read_table(result.path).to_pylist()
    words = r"Let's think step by step and output the final answer within \boxed{}."
    assert first == {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"Half of 48? {words}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "24"},
        "extra_info": {"split": "train", "index": 0, "id": "0"},
    }
    again = load_problems(result.path, needs="answer")
    assert [(p.problem, p.answer) for p in again] == [
        (f"Half of 48? {words}", "24"),
        (f"A lot? {words}", "1234"),
    ]


def test_another_template_is_written_into_verl_s_prompts(gsm8k, tmp_path):
    pytest.importorskip("pyarrow", reason="writes parquet; the extra `eval` has it")
    result = prepare("gsm8k", tmp_path, data=gsm8k, format="verl", template="Q: {problem}")
    assert load_problems(result.path)[0].problem == "Q: Half of 48?"


def test_what_is_there_is_replaced_only_if_that_is_asked_for(gsm8k, tmp_path):
    path = tmp_path / "gsm8k-test.jsonl"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"gsm8k-test.jsonl is there already; .*--overwrite"):
        prepare("gsm8k", tmp_path, data=gsm8k)
    assert path.read_text() == "mine"
    prepare("gsm8k", tmp_path, data=gsm8k, overwrite=True)
    assert len(load_problems(path)) == 2


def test_a_full_disk_leaves_what_was_there(gsm8k, tmp_path, monkeypatch):
    path = tmp_path / "gsm8k-test.jsonl"
    path.write_text("mine")

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"gsm8k-test\.jsonl"):
        prepare("gsm8k", tmp_path, data=gsm8k, overwrite=True)
    assert path.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gsm8k-test.jsonl", "raw.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "gsm9k"}, SelectionError, "no data set 'gsm9k'; choose aime24, aime25, deepscaler, gsm8k"),
        ({"name": "aime24", "split": "test"}, SelectionError, "aime24 has no split 'test'; it has train"),
        ({"name": "gsm8k", "format": "csv"}, SelectionError, "no format 'csv'; choose jsonl or verl"),
        ({"name": "gsm8k", "template": "boxed"}, InputError, "a template is written into verl's prompts alone"),
        ({"name": "gsm8k", "format": "verl", "template": "box"}, InputError, "no prompt template 'box'"),
        ({"name": "aime24", "limit": 1, "answers": False}, InputError, "none of the 1 rows .* data of aime24?"),
    ],
)
def test_what_cannot_be_prepared_is_refused_and_nothing_written(gsm8k, tmp_path, arguments, error, message):
    arguments = dict(arguments)
    if not arguments.pop("answers", True):
        jsonl(gsm8k, [{"problem": "1+1?"}])
    with pytest.raises(error, match=message):
        prepare(arguments.pop("name"), tmp_path / "data", data=gsm8k, **arguments)
    assert not (tmp_path / "data").exists()
