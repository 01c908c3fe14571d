"""docs/train.md names every setting with its default, every algorithm, and commands that can be given."""

import re
import shlex
from pathlib import Path

import pytest
from ckptlin_cli.train import command

from ckptlin.rl.algorithms import ALGORITHMS
from ckptlin.rl.config_file import load_config

PAGE = (Path(__file__).parents[2] / "docs/train.md").read_text(encoding="utf-8")


def documented():
    """Settings of the tables, and the default that stands beside each."""
    found = {}
    section = PAGE.partition("## Settings")[2].partition("\n## ")[0]
    for names, defaults in re.findall(r"^\| (`.*?`) \| (.*?) ?\| ", section, re.MULTILINE):
        settings = re.findall(r"`([a-z_.0-9]+)`", names)
        values = [value.strip(" `") for value in defaults.split(",")]
        if len(values) != len(settings):
            values *= len(settings)
        found |= dict(zip(settings, values, strict=True))
    return found


def settings():
    config = load_config(overrides=["model=m", "data.source=d"], with_extra=True)
    found = {}

    def walk(data, prefix):
        for key, value in data.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk(config.to_dict(), "")
    return found


def test_every_setting_is_in_the_reference_with_its_default():
    shown, expected = documented(), settings()
    assert shown.keys() - expected.keys() == set(), "the page names settings that are not there"
    assert expected.keys() - shown.keys() == set(), "the page lacks settings"
    for name, value in expected.items():
        if name in ("model", "data.source"):
            assert shown[name] == ""
        elif value is None:
            assert shown[name] == "", name
        elif isinstance(value, bool):
            assert shown[name] == str(value).lower(), name
        elif isinstance(value, int | float):
            assert float(shown[name]) == value, name
        else:
            assert shown[name] == str(value), name


def test_every_algorithm_is_in_the_table():
    table = PAGE.partition("## Algorithms")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)) == ALGORITHMS.keys()


@pytest.mark.parametrize("name", ["grpo", "rl-extra"])
def test_the_commands_of_the_page_are_ones_that_exist(name):
    text = PAGE.replace("\\\n", " ")
    lines = re.findall(rf"^\$ ckptlin train {name} (.*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        # A command keeps the names of its help from the first context that it was in.
        command.commands[name].make_context(name, shlex.split(line), help_option_names=["-h", "--help"])


def test_the_settings_of_the_page_are_ones_that_exist(tmp_path):
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        path = tmp_path / "run.yaml"
        path.write_text(block)
        assert load_config(path).reward.grader == "math"
