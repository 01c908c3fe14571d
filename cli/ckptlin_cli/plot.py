"""``ckptlin plot``."""

from pathlib import Path

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json

__all__ = ["command"]


@make_command(
    "plot",
    examples=[
        "ckptlin plot ./run.store --out ./figures",
        "ckptlin plot ./run.store --out ./figures --format pdf",
    ],
)
@click.argument("store", type=click.Path())
@click.option("--out", "out_dir", type=click.Path(path_type=Path), required=True, help="Where to put them.")
@click.option("--fit", "fit_name", default="default", show_default=True, help="Name of the fit.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["png", "pdf", "svg"]),
    multiple=True,
    default=("png",),
    show_default=True,
    help="May be repeated.",
)
@json_option
def command(store: str, out_dir: Path, fit_name: str, formats: tuple[str, ...], as_json: bool) -> None:
    """Draw the figures of a store that was fitted.

    A histogram of R² with its null, four trajectories with their lines, and a heat map layer × module kind.
    """
    from ckptlin.report import save_figures
    from ckptlin.store.store import TrajectoryStore

    paths = save_figures(TrajectoryStore(store), out_dir, fit=fit_name, formats=formats)
    if as_json:
        print_json({"figures": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(str(path))
