"""``ckptlin demo``."""

from pathlib import Path

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json, quiet_option
from ckptlin_cli.progress import progress_bars

__all__ = ["command"]


@make_command("demo", examples=["ckptlin demo", "ckptlin demo --steps 60 --out ./tour --overwrite"])
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path),
    default=Path("ckptlin-demo"),
    show_default=True,
    help="Directory for everything it makes.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of the run, a multiple of 20; half of it is seen.  [default: 300]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the data and the training.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@json_option
@quiet_option
def command(out_dir: Path, steps: int | None, seed: int, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Train a small model by reinforcement learning and show all of it.

    A Qwen2 model of 112 thousand parameters that adds with mistakes is trained by GRPO on the CPU.  Its
    checkpoints are ingested and fitted, its last one is predicted from the first half, and the prediction
    and what was trained answer the same problems.  It takes minutes, needs the extra `train`, and downloads
    nothing.
    """
    from ckptlin.demo import DemoSettings, run_demo

    result = run_demo(
        out_dir,
        seed=seed,
        overwrite=overwrite,
        settings=None if steps is None else DemoSettings.of_length(steps),
        progress=progress_bars(quiet),
        say=(lambda line: click.echo(line, err=True)) if as_json else click.echo,
    )
    if as_json:
        print_json(result.to_dict())
