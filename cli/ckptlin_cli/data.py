"""``ckptlin data``: what is trained and evaluated on."""

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import group, json_option, print_json
from ckptlin_cli.tables import echo_pairs

__all__ = ["command"]

_EXAMPLES = [
    "ckptlin data prepare sums --split test --limit 1000 --out ./data",
    "ckptlin data prepare gsm8k --data ./gsm8k.jsonl --format verl --out ./data --overwrite",
]


@make_command("data prepare", examples=_EXAMPLES)
@click.argument("name")
@click.option("--out", "out_dir", type=click.Path(), required=True, help="Directory of the file.")
@click.option(
    "--data",
    type=click.Path(),
    metavar="FILE",
    help="The same data as JSONL, JSON or parquet; or another source.  [default: the hub]",
)
@click.option("--split", metavar="SPLIT", help="Where there are several.  [gsm8k: test, sums: train]")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "verl"]),
    default="jsonl",
    show_default=True,
    help="JSONL in ckptlin's fields, or verl's parquet.",
)
@click.option(
    "--template",
    metavar="NAME|TEXT",
    help="Prompt of verl's format: boxed, plain, or a text with {problem}.  [default: boxed; sums: plain]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option(
    "--window",
    metavar="FROM:TO",
    help="Only problems of these days, ends included: 2024-08-01:2025-01-31.  [livecodebench]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of sums.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@json_option
def prepare_command(
    name: str,
    out_dir: str,
    data: str | None,
    split: str | None,
    file_format: str,
    template: str | None,
    limit: int | None,
    window: str | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the data set NAME with its answers, ready for training and evaluation.

    NAME is deepscaler, aime24, aime25, math500, gsm8k, livecodebench (from the hub, or from the file that
    --data names), or sums, the demo's task, which is made on the spot.  Rows without an answer and rows whose
    problem is there already are left out, and counted.
    """
    from ckptlin.problems.prepare import prepare

    result = prepare(
        name,
        out_dir,
        data=data,
        split=split,
        format="verl" if file_format == "verl" else "jsonl",
        template=template,
        limit=limit,
        window=window,
        seed=seed,
        overwrite=overwrite,
    )
    if as_json:
        print_json(result.to_dict())
        return
    conflicting = f", {result.num_conflicting:,} of them with another answer" if result.num_conflicting else ""
    echo_pairs(
        [
            ("wrote", str(result.path)),
            ("source", result.source),
            ("problems", f"{result.num_written:,} of {result.num_read:,} rows"),
            ("duplicates", f"{result.num_duplicates:,} left out{conflicting}"),
            ("without an answer", f"{result.num_unanswerable:,} left out"),
        ]
    )


command = group("data", "Prepare the data to train and evaluate on.", [prepare_command], examples=_EXAMPLES)
