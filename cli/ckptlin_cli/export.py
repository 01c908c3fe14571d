"""``ckptlin export``."""

import click

from ckptlin.memory import format_bytes
from ckptlin_cli.options import budget_options, json_option, out_option, print_json, quiet_option
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.tables import echo_pairs

__all__ = ["command"]


@make_command(
    "export",
    examples=[
        "ckptlin export ./run.store --step 300 --out ./step-300",
        "ckptlin export ./run.store --step 300 --out ./step-300 --overwrite --json",
    ],
)
@click.argument("store", type=click.Path())
@click.option("--step", type=int, required=True, help="An ingested step.")
@out_option
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is there.")
@budget_options
@json_option
@quiet_option
def command(
    store: str,
    step: int,
    out_dir: str,
    overwrite: bool,
    memory: int | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Give an ingested checkpoint back, bit for bit, with its configuration and tokenizer."""
    from ckptlin.export import export
    from ckptlin.store.store import TrajectoryStore

    result = export(
        TrajectoryStore(store),
        step,
        out_dir,
        overwrite=overwrite,
        memory_bytes=memory,
        num_workers=workers,
        progress=progress_bars(quiet),
    )
    if as_json:
        print_json(result.to_dict())
        return
    echo_pairs(
        [
            ("wrote", str(result.out_dir)),
            ("size", format_bytes(result.num_bytes)),
            ("time", f"{result.elapsed_s:.1f} s"),
        ]
    )
