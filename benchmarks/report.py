"""Figures with their bars: a table for people, JSON with hardware, versions, command and date."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["Figure", "print_figures", "save_figures"]


@dataclass(frozen=True)
class Figure:
    """A measured figure and the bar it is held to.

    Attributes
    ----------
    bar : float or None
        None for a figure that is only reported.
    at_least : bool
        Whether the bar is a floor; otherwise it is a ceiling.
    """

    name: str
    value: float
    bar: float | None
    at_least: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, by how much it falls short, or nothing without a bar."""
        if self.bar is None:
            return ""
        if (self.value >= self.bar) if self.at_least else (self.value <= self.bar):
            return "pass"
        return f"falls short by {abs(self.value / self.bar - 1):.0%}"


def print_figures(title: str, figures: Sequence[Figure]) -> None:
    """Print a table."""
    print(f"{title}\n{_machine()}\n")
    for figure in figures:
        bar = "" if figure.bar is None else f"{'>=' if figure.at_least else '<='} {figure.bar:g}"
        print(f"{figure.name:<42} {figure.value:9.2f} {figure.unit:<5} {bar:>8}  {figure.verdict}")


def save_figures(path: Path, title: str, figures: Sequence[Figure]) -> None:
    """Write everything as JSON."""
    packages = ("ckptlin", "numpy", "numba", "zarr", "numcodecs", "dask")
    content = {
        "title": title,
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": {name: version(name) for name in packages},
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{os.cpu_count()} x {cpu}, {platform.system()}, Python {platform.python_version()}"
