"""``ckptlin generate`` as a user calls it."""

import json

import pytest
from ckptlin_cli.main import cli
from click.testing import CliRunner

from ckptlin.evaluate.samples import read_samples
from ckptlin.logits import read_pair
from tests.logits.checkpoints import save_checkpoints
from tests.logits.loop import TwoModels


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_checkpoints(tmp_path_factory.mktemp("run"))


def run(*arguments):
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)])


def test_two_checkpoints_answer_a_prompt(checkpoints, tmp_path):
    first, second = checkpoints
    out = tmp_path / "answers.jsonl"
    done = run(
        "--base", first, "--second", second, "--target-step", 27, "--prompt", "QRS", "--prompt", "A",
        "--engine", "hf", "--temperature", 0, "--max-tokens", 8, "--out", out, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["source"]["pair"] == {
        "base": str(first), "second": str(second), "alpha": 1.7, "steps": [10, 20], "target": 27,
    }  # fmt: skip
    loop = TwoModels(*checkpoints)
    for answer, prompt in zip(result["answers"], ([18, 19, 20], [2]), strict=True):
        assert answer["token_ids"] == loop.greedy(prompt, answer["token_ids"], 1.7)
    assert [json.loads(line) for line in out.read_text().splitlines()] == result["answers"]
    assert [sample.problem_id for sample in read_samples(out)] == ["prompt-0", "prompt-1"]


def test_a_single_checkpoint_answers_data(checkpoints, tmp_path):
    data = tmp_path / "problems.jsonl"
    data.write_text('{"problem": "AB", "id": "x"}\n{"problem": "CD", "id": "y"}\n')
    done = run(
        "--base", checkpoints[0], "--data", data, "--limit", 1, "--samples", 2, "--engine", "hf",
        "--max-tokens", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("> AB\n")
    assert len(done.stdout.splitlines()) == 3


def test_a_pair_is_written_for_a_server(checkpoints, tmp_path):
    directory = tmp_path / "pair"
    arguments = [
        "--base",
        checkpoints[0],
        "--second",
        checkpoints[1],
        "--alpha",
        2.5,
        "--write-pair",
        directory,
    ]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert f"vllm.entrypoints.openai.api_server --model {directory}" in done.stdout
    assert read_pair(directory).alpha == 2.5
    assert run(*arguments).exit_code == 2
    assert run(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "A", "--alpha", "2"], "--alpha goes with two checkpoints"),
        (["--prompt", "A", "--target-step", "2"], "--target-step goes with two checkpoints"),
        (["--second", "SECOND", "--prompt", "A"], "give one of --target-step and --alpha"),
        (["--second", "SECOND", "--prompt", "A", "--alpha", "2", "--target-step", "3"], "give one of"),
        ([], "nothing to answer"),
        (["--prompt", "A", "--data", "x.jsonl"], "not both"),
        (["--prompt", "A", "--limit", "3"], "--limit goes with --data"),
        (["--prompt", "A", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "A", "--engine", "other"], "no engine 'other'"),
        (["--prompt", "A", "--out", "nowhere/x.jsonl"], "no directory that exists"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(checkpoints, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("--base", checkpoints[0], *(str(checkpoints[1]) if a == "SECOND" else a for a in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
