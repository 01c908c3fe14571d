"""Tables of what models solve, for `ckptlin evaluate` and `ckptlin grade`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.tables import echo_table, percent

if TYPE_CHECKING:
    from ckptlin.evaluate.metrics import Interval, Summary

__all__ = ["SummaryRow", "echo_summaries", "parse_ks", "summary_rows"]

_MOST_KS = 3


@dataclass(frozen=True)
class SummaryRow:
    """A model, or a file of answers, in the table.

    Attributes
    ----------
    label : str
    summary : Summary
    share_truncated : float or None
        None where it is not known, as `num_empty`.
    num_empty : int or None
    """

    label: str
    summary: "Summary"
    share_truncated: float | None
    num_empty: int | None


def echo_summaries(head: str, rows: Sequence[SummaryRow], *, every_k: bool) -> None:
    """Print a row for each model or file: its mean score with both intervals, then pass@k and maj@k.

    Parameters
    ----------
    head : str
        Of the first column.
    rows : sequence of SummaryRow
    every_k : bool
        Whether all k are shown, which were then asked for, or a few of them.
    """
    average = next(iter(rows[0].summary.estimates))
    others = _others([row.summary for row in rows], every_k=every_k)
    with_tokens = any(row.summary.lengths is not None for row in rows)
    with_empty = any(row.num_empty for row in rows)
    header = [head, "problems", average, "over answers", "over problems", *others, "cut off"]
    header += ["tokens"] if with_tokens else []
    header += ["empty"] if with_empty else []
    cells = []
    for row in rows:
        estimates, lengths = row.summary.estimates, row.summary.lengths
        main = next(iter(estimates.values()))
        line = [row.label, f"{row.summary.num_problems:,}", percent(main.value)]
        line += [_interval(main.over_samples), _interval(main.over_problems)]
        line += [percent(estimates[name].value if name in estimates else None) for name in others]
        line.append(percent(row.share_truncated))
        if with_tokens:
            line.append("-" if lengths is None else f"{lengths.mean:,.0f}")
        if with_empty:
            line.append("-" if row.num_empty is None else f"{row.num_empty:,}")
        cells.append(line)
    echo_table(header, cells)
    level = f"{main.over_samples.level:.0%}"
    click.echo(
        f"\n{average}, with its {level} intervals: over answers, if these very problems were answered again;"
    )
    click.echo("over problems, if other problems of this kind had been asked")
    for warning in dict.fromkeys(
        warning for row in rows for warning in next(iter(row.summary.estimates.values())).warnings
    ):
        click.echo(f"note: {warning}", err=True)


def summary_rows(summaries: Mapping[str, "Summary"]) -> list[dict[str, Any]]:
    """Return a row for each model and metric, for CSV."""
    return [
        {
            "label": label,
            "metric": name,
            "value": found.value,
            "over_answers_low": found.over_samples.low,
            "over_answers_high": found.over_samples.high,
            "over_problems_low": found.over_problems.low,
            "over_problems_high": found.over_problems.high,
            "num_problems": summary.num_problems,
            "num_samples": summary.num_samples,
        }
        for label, summary in summaries.items()
        for name, found in summary.estimates.items()
    ]


def parse_ks(text: str | None) -> list[int] | None:
    """Read the numbers of ``--k``.

    Raises
    ------
    InputError
        If one is none.
    """
    from ckptlin.errors import InputError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--k {text} is no list of numbers such as 1,8,64") from None


def _others(summaries: "Sequence[Summary]", *, every_k: bool) -> list[str]:
    """Choose metrics besides the mean: what says the same as the mean is left out, of many k some are shown."""
    chosen: list[str] = []
    for family in ("pass@", "maj@"):
        names = list(dict.fromkeys(n for s in summaries for n in s.estimates if n.startswith(family)))
        if not every_k:
            # With one answer the best and the most frequent are the only one, unless scores are shares.
            names = [name for name in names if not all(_is_mean(summary, name) for summary in summaries)]
            if len(names) > _MOST_KS:
                places = [round(i * (len(names) - 1) / (_MOST_KS - 1)) for i in range(_MOST_KS)]
                names = [names[place] for place in places]
        chosen += names
    return chosen


def _is_mean(summary: "Summary", name: str) -> bool:
    if name not in summary.estimates or not name.endswith("@1"):
        return False
    return abs(summary.estimates[name].value - next(iter(summary.estimates.values())).value) < 1e-9


def _interval(interval: "Interval") -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
