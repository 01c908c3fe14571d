"""Figures with their bars: a table for people, JSON with hardware, versions, command and date."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Figure", "Section", "machine", "print_section", "save_sections", "versions"]

_PACKAGES = (
    "ckptlin",
    "numpy",
    "numba",
    "zarr",
    "numcodecs",
    "dask",
    "xarray",
    "torch",
    "transformers",
    "safetensors",
)


@dataclass(frozen=True)
class Figure:
    """A measured figure and the bar it is held to.

    Attributes
    ----------
    value : float or None
        None if it could not be measured; the note says why.
    bar : float or None
        None for a figure that is only reported.
    at_least : bool
        Whether the bar is a floor; otherwise it is a ceiling.
    """

    name: str
    value: float | None
    bar: float | None = None
    at_least: bool = False
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, by how much it falls short, ``not measured``, or nothing without a bar."""
        if self.value is None:
            return "not measured"
        if self.bar is None:
            return ""
        if (self.value >= self.bar) if self.at_least else (self.value <= self.bar):
            return "pass"
        return f"falls short by {abs(self.value / self.bar - 1):.0%}"


@dataclass(frozen=True)
class Section:
    """The figures of one topic, all from one run.

    Attributes
    ----------
    title : str
        What was measured: sizes and conditions.
    notes : sequence of str
        What a reader has to know to judge the figures.
    """

    title: str
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default=())


def print_section(section: Section) -> None:
    """Print a table."""
    print(f"\n{section.title}\n")
    width = max((len(figure.name) for figure in section.figures), default=0)
    for figure in section.figures:
        bar = "" if figure.bar is None else f"{'>=' if figure.at_least else '<='} {figure.bar:g}"
        value = "-" if figure.value is None else f"{figure.value:.2f}"
        line = f"  {figure.name:<{width}} {value:>9} {figure.unit:<5} {bar:>8}  {figure.verdict}"
        print(line + (f"  ({figure.note})" if figure.note else ""))
    for note in section.notes:
        print(f"  * {note}")


def save_sections(path: Path, sections: Sequence[Section]) -> None:
    """Write everything as JSON."""
    content = {
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "versions": versions(_PACKAGES),
        "sections": [
            {
                "title": section.title,
                "notes": list(section.notes),
                "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in section.figures],
            }
            for section in sections
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> str:
    """Name processors, system and Python in one line."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{os.cpu_count()} x {cpu}, {platform.system()}, Python {platform.python_version()}"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: found for name in packages if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
