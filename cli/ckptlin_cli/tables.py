"""Tables for people, on stdout."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

__all__ = ["duration", "echo_pairs", "echo_table", "hundredths", "percent", "quantity", "write_csv"]


def echo_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(cells).rstrip())


def echo_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, aligned."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")


def percent(share: float | None) -> str:
    """Write a share.

    Examples
    --------
    >>> percent(0.7123), percent(None)
    ('71.2%', '-')
    """
    return "-" if share is None else f"{share:.1%}"


def hundredths(value: float | None) -> str:
    """Write a figure such as R².

    Examples
    --------
    >>> hundredths(0.7123), hundredths(None)
    ('0.71', '-')
    """
    return "-" if value is None else f"{value:.2f}"


def quantity(number: float) -> str:
    """Write a count for people.

    Examples
    --------
    >>> quantity(853), quantity(112448), quantity(1543714304)
    ('853', '112.4 k', '1.54 G')
    """
    for unit, scale, digits in (("G", 1e9, 2), ("M", 1e6, 2), ("k", 1e3, 1)):
        if number >= scale:
            return f"{number / scale:.{digits}f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Write a time for people.

    Examples
    --------
    >>> duration(7.4), duration(125), duration(90061)
    ('7 s', '2:05', '25:01:01')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with a header line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
