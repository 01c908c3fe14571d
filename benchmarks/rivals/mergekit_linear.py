"""Two-point extrapolation with mergekit: a linear merge with the weights 1 − alpha and alpha.

mergekit asks for versions of its own, so it gets an environment of its own, from PyPI, and only when the
command line of the benchmarks says ``--mergekit``.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

__all__ = ["MERGEKIT", "install_mergekit", "merge_command"]

MERGEKIT = "mergekit==0.1.5"


def install_mergekit(venv: Path) -> str | None:
    """Install mergekit into an environment; return what went wrong, or None."""
    program = venv / "bin" / "mergekit-yaml"
    if program.exists():
        return None
    # The torch that the other rivals use; its CPU build may need PIP_EXTRA_INDEX_URL.
    packages = [MERGEKIT, f"torch=={version('torch')}"]
    python = str(venv / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [python, "-m", "pip", "install", "-q", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            return f"{MERGEKIT} could not be installed: {lines[-1].strip()}"
    return None


def merge_command(
    venv: Path, first: Path, second: Path, alpha: float, out: Path, *, dtype: str = "bfloat16"
) -> list[str]:
    """Write the configuration beside ``out`` and return the command line."""
    models = [
        {"model": str(path), "parameters": {"weight": w}} for path, w in ((first, 1 - alpha), (second, alpha))
    ]
    config = out.with_name(f"{out.name}.yml")
    # JSON is YAML.
    config.write_text(json.dumps({"merge_method": "linear", "dtype": dtype, "models": models}))
    return [str((venv / "bin" / "mergekit-yaml").absolute()), str(config), str(out), "--no-copy-tokenizer"]
