import importlib
import re
import shlex
import shutil
import subprocess
import sys

import click
import pytest
from ckptlin_cli.main import COMMANDS, cli
from click.testing import CliRunner

from ckptlin._version import __version__
from tests.command_line import call

HEAVY = ("numba", "zarr", "dask", "torch", "transformers", "matplotlib", "numcodecs", "rich", "numpy")
# What a command calls; `demo` trains for minutes, those that need a model too have tests of their own.
NEEDS = {"plot": "ckptlin.report:save_figures", "demo": "ckptlin.demo:run_demo"}
SLOW = {
    "activations",
    "decompose",
    "demo",
    "evaluate",
    "generate",
    "logprobs",
    "responses",
    "train grpo",
    "train rl-extra",
}


def load(name) -> click.Command:
    """Return a command, or one of a group; skip the test if what it calls does not exist yet."""
    if name in NEEDS:
        module, function = NEEDS[name].split(":")
        if not hasattr(pytest.importorskip(module, reason="is not written yet"), function):
            pytest.skip(f"{NEEDS[name]} is not written yet")
    first, _, second = name.partition(" ")
    command = importlib.import_module(f"ckptlin_cli.{first}").command
    return command.commands[second] if second else command


def all_commands() -> list[str]:
    """Return every command's words behind ``ckptlin``, those inside groups too."""
    found = []
    for name in COMMANDS:
        command = importlib.import_module(f"ckptlin_cli.{name}").command
        found += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", ()))]
    return found


ALL_COMMANDS = all_commands()


def examples_of(name) -> list[str]:
    """Return the lines below ``Examples:`` at the end of a command's help."""
    shown = call(*name.split(), "--help").stdout
    _, found, tail = shown.partition("\nExamples:\n")
    assert found, shown
    return [line.removeprefix("  ") for line in tail.rstrip("\n").split("\n")]


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_the_help_of_a_command_ends_with_two_examples_on_a_line_each(name):
    load(name)
    examples = examples_of(name)
    assert len(examples) >= 2
    assert all(example.startswith(f"ckptlin {name}") for example in examples)
    assert len(set(examples)) == len(examples)


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_option_has_help_and_every_command_says_what_it_does(name):
    command = load(name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    shown = call(*name.split(), "--help").stdout
    assert call(*name.split(), "-h").stdout == shown
    assert max(map(len, shown.partition("\nExamples:")[0].split("\n"))) <= 80


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_the_examples_of_a_command_work(name, here):
    command = load(name)
    for example in examples_of(name):
        words = shlex.split(example)[1:]
        if name in SLOW and "--dry-run" not in words:
            # A command keeps the names of its help from the first context that it was in.
            rest = words[len(name.split()) :]
            command.make_context(name, rest, help_option_names=["-h", "--help"])
            continue
        if name == "ingest":
            shutil.rmtree("run.store")
        assert call(*words).stdout
        for path in here.iterdir():
            if path.name.startswith("step-") and "--overwrite" in words:
                shutil.rmtree(path)


def test_an_example_may_be_given_again_where_it_says_overwrite(here):
    first, again = examples_of("export")
    assert "--overwrite" in again
    assert "--overwrite" not in first
    for example in (first, again, again):
        call(*shlex.split(example)[1:])


def test_the_help_of_the_program_lists_every_command():
    shown = call("--help").stdout
    listed = re.findall(r"^  ([a-z]+)  +(\S.*)$", shown.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    for name, line in listed:
        assert line == COMMANDS[name]
        assert line.endswith((".", "?"))


def test_the_version_is_told():
    assert call("--version").stdout == f"ckptlin, version {__version__}\n"


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(cli, [])
    assert "Commands:" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("program", ["import ckptlin", "help", *(f"{name} --help" for name in ALL_COMMANDS)])
def test_heavy_packages_load_on_first_use(program):
    """Also for the help of single commands: it is what one reads first."""
    if program == "import ckptlin":
        code = program
    else:
        words = ["--help"] if program == "help" else program.split()
        if words[0] in NEEDS:
            load(words[0])
        code = (
            "import contextlib, io\nfrom ckptlin_cli.main import cli\n"
            f"with contextlib.redirect_stdout(io.StringIO()):\n    cli({words!r}, standalone_mode=False)"
        )
    code += f"\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def test_the_program_is_installed_under_its_name():
    program = shutil.which("ckptlin", path=f"{sys.prefix}/bin")
    assert program is not None
    result = subprocess.run([program, "methods"], capture_output=True, text=True, check=True)
    assert "two-point" in result.stdout
    assert result.stderr == ""
