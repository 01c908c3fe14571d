"""``ckptlin demo``."""

from pathlib import Path

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json, quiet_option
from ckptlin_cli.progress import progress_bars

__all__ = ["command"]


@make_command("demo", examples=["ckptlin demo", "ckptlin demo --out ./tour --overwrite"])
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path),
    default=Path("ckptlin-demo"),
    show_default=True,
    help="Directory for everything it makes.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the model, the data and the training.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@json_option
@quiet_option
def command(out_dir: Path, seed: int, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Train a small model and show all of it, in a few minutes.

    A Qwen2 model of 75 thousand parameters learns arithmetic on the CPU; its checkpoints are
    ingested and fitted, its last one is predicted from the first ones, and the prediction compared with what
    was trained.  Needs the extra `models`; downloads nothing.
    """
    from ckptlin.demo import run_demo

    result = run_demo(
        out_dir,
        seed=seed,
        overwrite=overwrite,
        progress=progress_bars(quiet),
        say=(lambda line: click.echo(line, err=True)) if as_json else click.echo,
    )
    if as_json:
        print_json(result.to_dict())
