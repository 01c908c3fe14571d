import json
import os

import click
from ckptlin_cli.data import command
from click.testing import CliRunner

from tests.command_line import call, call_json

PREPARE = ("data", "prepare")


def refusal(*args) -> str:
    """Run a command of ``ckptlin data`` and expect one sentence on stderr, and exit status 2."""
    from ckptlin_cli.main import cli

    result = CliRunner().invoke(cli, [os.fspath(arg) for arg in args], prog_name="ckptlin")
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_it_says_what_was_written_and_what_was_left_out(here):
    raw = here / "raw.jsonl"
    rows = [("a?", "#### 1"), ("a?", "#### 2"), ("b?", "none")]
    raw.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    shown = call(*PREPARE, "gsm8k", "--data", raw, "--out", "data").stdout
    assert "data/gsm8k-test.jsonl" in shown
    assert "1 of 3 rows" in shown
    assert "1 left out, 1 of them with another answer" in shown
    told = call_json(*PREPARE, "gsm8k", "--data", raw, "--out", "data", "--overwrite")
    assert (told["num_written"], told["num_duplicates"], told["num_unanswerable"]) == (1, 1, 1)


def test_errors_are_one_sentence(here):
    message = refusal(*PREPARE, "gsm9k", "--out", "data")
    assert message.startswith("ckptlin data prepare: there is no data set 'gsm9k'; choose aime24")
    assert refusal("data", "prepar").startswith("ckptlin data: No such command 'prepar'")
    assert refusal("data").startswith("ckptlin data: Missing command")
    assert refusal(*PREPARE, "sums").startswith("ckptlin data prepare: Missing option '--out'")
    call(*PREPARE, "sums", "--limit", "5", "--out", "data")
    assert "is there already" in refusal(*PREPARE, "sums", "--limit", "5", "--out", "data")


def test_the_help_of_each_command_ends_with_its_examples_and_every_option_has_help():
    for name, made in command.commands.items():
        shown = call("data", name, "--help").stdout
        assert call("data", name, "-h").stdout == shown
        _, _, examples = shown.partition("\nExamples:\n")
        assert examples.count(f"ckptlin data {name}") >= 2
        assert all(p.help for p in made.params if isinstance(p, click.Option))
    assert "prepare" in call("data", "--help").stdout
