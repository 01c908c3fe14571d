"""``ckptlin grade``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json
from ckptlin_cli.tables import echo_table, percent

if TYPE_CHECKING:
    from ckptlin.evaluate.grade import GradedFile, GradeResult
    from ckptlin.evaluate.metrics.summary import Estimate

__all__ = ["command"]


@make_command(
    "grade",
    examples=[
        "ckptlin grade ./answers.jsonl",
        "ckptlin grade ./before.json ./after.json --data ./problems.jsonl --k 1,2 --out ./scores.jsonl",
    ],
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--data",
    type=click.Path(),
    metavar="FILE",
    help="Problems and right answers, where the files have none.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="The task that was answered, for its problems (or those of --data) and its grader.",
)
@click.option(
    "--grader",
    metavar="NAME",
    help="math, exact, code, or package.module:function.  [default: the task's, or math]",
)
@click.option(
    "--set-grader",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the grader, such as no_box=last-expression; may be repeated.",
)
@click.option("--k", "ks", metavar="LIST", help="For pass@k and maj@k: 1,8,64.  [default: powers of two]")
@click.option("--common", is_flag=True, help="Compare files with different problems on those they share.")
@click.option(
    "--level", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True, help="Of intervals."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write each answer's score, and what it answers, as JSONL.",
)
@json_option
def command(
    files: tuple[str, ...],
    data: str | None,
    task: str | None,
    grader: str | None,
    settings: tuple[str, ...],
    ks: str | None,
    common: bool,
    level: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Grade answers that exist already; no model is needed.

    A FILE is JSONL, JSON or parquet with an answer a row or a list of answers a row, what the paper's code or
    verl's validation has written, or the directory of an evaluation.  Several files are compared with the first
    on the same problems.
    """
    from ckptlin.evaluate.grade import grade

    result = grade(
        files,
        data=data,
        task=task,
        grader=grader,
        grader_parameters=_parameters(settings),
        ks=None if ks is None else _numbers(ks),
        common=common,
        level=level,
        out=out,
    )
    for file in result.files:
        for note in file.notes:
            click.echo(f"{file.label}: {note}", err=True)
    for note in result.notes:
        click.echo(note, err=True)
    if as_json:
        print_json(result.to_dict())
        return
    _show(result, level, ks is not None)


def _parameters(settings: tuple[str, ...]) -> dict[str, Any]:
    from ckptlin.errors import InputError

    parameters: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set-grader {setting} is no KEY=VALUE")
        try:
            parameters[key] = json.loads(value)  # numbers, true, false
        except ValueError:
            parameters[key] = value
    return parameters


def _numbers(text: str) -> list[int]:
    from ckptlin.errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--k {text} is no list of numbers such as 1,8,64") from None


def _show(result: "GradeResult", level: float, every_k: bool) -> None:
    click.echo(
        f"Grader {result.grader}.  Values in %, with {level:.0%} intervals: [over problems of the same kind],\n"
        "(over samples on these problems).\n"
    )
    names = _names(result, every_k)
    header = ["file", "problems", *names, "truncated", "tokens", "empty"]
    echo_table(header, [_row(file, names) for file in result.files])
    verdicts = result.verdicts()
    if verdicts:
        click.echo()
    for verdict in verdicts:
        click.echo(verdict)


def _names(result: "GradeResult", every_k: bool) -> list[str]:
    """Return the metrics to show: avg, and of pass@k and maj@k those asked for, or the largest k."""
    found: dict[str, None] = {}
    for kind in ("avg", "pass", "maj"):
        for file in result.files:
            estimates = file.summary.estimates
            average = next(iter(estimates.values())).value
            # pass@1 and maj@1 are avg, unless scores are shares.
            of_kind = [
                name
                for name in estimates
                if name.startswith(f"{kind}@")
                and (kind == "avg" or not name.endswith("@1") or estimates[name].value != average)
            ]
            found |= dict.fromkeys(of_kind if every_k else of_kind[-1:])
    return list(found)


def _row(file: "GradedFile", names: list[str]) -> list[str]:
    lengths = file.summary.lengths
    return [
        file.label,
        f"{file.summary.num_problems:,}",
        *(_cell(file.summary.estimates.get(name)) for name in names),
        percent(file.share_truncated),
        "-" if lengths is None else f"{lengths.mean:,.0f}",
        f"{file.num_empty:,}",
    ]


def _cell(estimate: "Estimate | None") -> str:
    if estimate is None:
        return "-"
    problems, samples = estimate.over_problems, estimate.over_samples
    return (
        f"{100 * estimate.value:.1f} [{100 * problems.low:.1f}, {100 * problems.high:.1f}] "
        f"({100 * samples.low:.1f}, {100 * samples.high:.1f})"
    )
