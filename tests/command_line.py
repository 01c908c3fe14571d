"""Calls of the command line inside this process."""

import json
import os
from pathlib import Path
from typing import Any

from ckptlin_cli.main import cli
from click.testing import CliRunner, Result

__all__ = ["call", "call_json", "refusal"]


def call(*args: str | os.PathLike[str]) -> Result:
    """Run ``ckptlin`` and expect success."""
    result = _invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def call_json(*args: str | os.PathLike[str]) -> Any:
    """Run ``ckptlin`` with ``--json`` and return what it printed on stdout."""
    return json.loads(call(*args, "--json").stdout)


def refusal(*args: str | os.PathLike[str]) -> str:
    """Run ``ckptlin`` and expect one sentence on stderr, nothing on stdout and exit status 2; return it.

    A command of a group is named by its second word too.
    """
    result = _invoke(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    line, rest = result.stderr.split("\n", 1)
    assert rest == "", result.stderr
    assert "Traceback" not in line
    name = next(
        name for name in (" ".join(map(str, args[:2])), args[0]) if line.startswith(f"ckptlin {name}: ")
    )
    return line.removeprefix(f"ckptlin {name}: ")


def _invoke(*args: str | os.PathLike[str]) -> Result:
    words = [os.fspath(arg) if isinstance(arg, Path) else arg for arg in args]
    return CliRunner().invoke(cli, words, prog_name="ckptlin")
