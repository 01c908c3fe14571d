"""``ckptlin plot``."""

from pathlib import Path

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, print_json, quiet_option, steps_option
from ckptlin_cli.progress import progress_bars

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
@steps_option
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
@quiet_option
def command(
    store: str,
    out_dir: Path,
    steps: str | None,
    fit_name: str,
    formats: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw the figures of a store that was fitted.

    A histogram of R² with its null, four trajectories with their lines, and a heat map layer × module kind.
    With --steps the window is fitted for the figures alone, and nothing is kept.
    """
    from ckptlin.fit import fit
    from ckptlin.report import save_figures
    from ckptlin.store.store import TrajectoryStore

    opened = TrajectoryStore(store)
    summary = None
    if steps is not None:
        summary = fit(opened, steps=steps, keep=False, progress=progress_bars(quiet)).summary
    paths = save_figures(opened, out_dir, fit=fit_name, summary=summary, formats=formats)
    if as_json:
        print_json({"figures": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(str(path))
