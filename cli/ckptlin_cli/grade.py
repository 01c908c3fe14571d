"""``ckptlin grade``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json
from ckptlin_cli.summaries import SummaryRow, echo_summaries, parse_ks

if TYPE_CHECKING:
    from ckptlin.evaluate.grade import GradeResult

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
        ks=parse_ks(ks),
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
    _show(result, every_k=ks is not None)


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


def _show(result: "GradeResult", *, every_k: bool) -> None:
    click.echo(f"grader {result.grader}\n")
    rows = [SummaryRow(file.label, file.summary, file.share_truncated, file.num_empty) for file in result.files]
    echo_summaries("file", rows, every_k=every_k)
    verdicts = result.verdicts()
    if verdicts:
        click.echo()
    for verdict in verdicts:
        click.echo(verdict)
