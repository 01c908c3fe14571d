"""Tables of what models solve, for `ckptlin evaluate` and `ckptlin grade`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.tables import echo_table, percent

if TYPE_CHECKING:
    from ckptlin.evaluate.metrics import Comparison, Interval, Summary

__all__ = ["echo_comparisons", "echo_summaries", "summary_rows"]

_MOST_KS = 4


def echo_summaries(summaries: Mapping[str, "Summary"]) -> None:
    """Print a row for each model or file; figures beyond these are in ``--json`` and ``--csv``."""
    first = next(iter(summaries.values()))
    names = list(first.estimates)
    others = _some(names[1:])
    has_lengths = any(summary.lengths is not None for summary in summaries.values())
    header = ["", names[0], "over answers", "over problems", *others]
    header += ["cut off", "tokens"] if has_lengths else []
    rows = []
    for label, summary in summaries.items():
        main = summary.estimates[names[0]]
        row = [label, percent(main.value), _interval(main.over_samples), _interval(main.over_problems)]
        row += [percent(summary.estimates[n].value if n in summary.estimates else None) for n in others]
        if has_lengths:
            lengths = summary.lengths
            row += ["-", "-"] if lengths is None else [percent(lengths.share_truncated), f"{lengths.mean:,.0f}"]
        rows.append(row)
    echo_table(header, rows)
    click.echo(
        "intervals of 95%: over answers, for other answers to these very problems; over problems, for other "
        "problems of this kind"
    )
    for warning in dict.fromkeys(w for s in summaries.values() for w in s.estimates[names[0]].warnings):
        click.echo(f"note: {warning}", err=True)


def echo_comparisons(baseline: str, comparisons: Mapping[str, "Comparison"]) -> None:
    """Print what each model solves more or less than the baseline, on the same problems."""
    if comparisons:
        click.echo()
        click.echo(f"Beside {baseline}, on the same problems:")
        for label, found in comparisons.items():
            click.echo(f"  {found.verdict(first=baseline, second=label)}")


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


def _some(names: list[str]) -> list[str]:
    """Choose some metrics of each family, from the first to the last."""
    chosen = []
    for family in ("pass@", "maj@"):
        members = [name for name in names if name.startswith(family)]
        if len(members) > _MOST_KS:
            places = [round(i * (len(members) - 1) / (_MOST_KS - 1)) for i in range(_MOST_KS)]
            members = [members[place] for place in places]
        chosen += members
    return chosen


def _interval(interval: "Interval") -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
