"""``ckptlin verify``."""

import sys

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import budget_options, json_option, print_json, quiet_option, steps_option
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import progress_bars

__all__ = ["command"]


@make_command("verify", examples=["ckptlin verify ./run.store", "ckptlin verify ./run.store --json"])
@click.argument("store", type=click.Path())
@steps_option
@budget_options
@json_option
@quiet_option
def command(
    store: str, steps: str | None, memory: int | None, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """Check every chunk of a store, and every step against the fingerprint taken when it was ingested.

    Exit status 0 if all is well, 2 if anything is damaged or missing.
    """
    from ckptlin.store.store import TrajectoryStore
    from ckptlin.verify import verify

    opened = TrajectoryStore(store)
    progress = progress_bars(quiet)
    result = verify(opened, steps=steps, memory_bytes=memory, num_workers=workers, progress=progress)
    if as_json:
        print_json(result.to_dict())
    elif not result.problems:
        click.echo(
            f"{store}: {result.num_chunks} chunks, {format_bytes(result.raw_bytes)} of weights, "
            f"all as they were ingested ({result.elapsed_s:.1f} s)"
        )
    for problem in result.problems:
        click.echo(f"ckptlin verify: {problem}", err=True)
    if result.problems:
        sys.exit(2)
