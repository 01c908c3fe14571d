"""``ckptlin backtest``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptlin_cli.options import (
    budget_options,
    cluster_options,
    csv_option,
    figure_option,
    json_option,
    print_json,
    quiet_option,
    segment_option,
    selection_options,
    source_options,
    steps_option,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.progress import note_skipped, progress_bars
from ckptlin_cli.tables import echo_table, quantity, write_csv

if TYPE_CHECKING:
    from ckptlin.backtest import BacktestResult, SkillFigures

__all__ = ["command"]

# Under this a skill says no more than that it is hopeless, and the column would get wide.
_HOPELESS = -9.995


@make_command(
    "backtest",
    examples=[
        "ckptlin backtest ./run.store",
        "ckptlin backtest ./run --methods two-point,damped,wls:decay=0.5 --by kind --figure skill.png",
    ],
)
@click.argument("source", nargs=-1, required=True, metavar="STORE|RUN|STEP=PATH...")
@click.option("--methods", metavar="LIST", help="Separated by commas; see `ckptlin methods`.  [default: all]")
@steps_option
@segment_option
@selection_options
@click.option("--by", type=click.Choice(["kind"]), help="A table more: the best method for each module kind.")
@csv_option
@figure_option("--figure", "Draw skill against horizon")
@click.option("--no-keep", is_flag=True, help="Do not keep Gram matrices in the store; it is then only read.")
@source_options
@budget_options
@cluster_options
@json_option
@quiet_option
def command(
    source: tuple[str, ...],
    methods: str | None,
    steps: str | None,
    segment: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    by: str | None,
    csv_path: Path | None,
    figure_path: Path | None,
    no_keep: bool,
    base: str | None,
    skip_incomplete: bool,
    memory: int | None,
    workers: int | None,
    scheduler: str | None,
    processes: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge every method by checkpoints that it has not seen: which one to trust, and how far?

    Each prefix of the run predicts each later checkpoint.  The weights are read once, for Gram matrices, which
    a store keeps; every method is then judged without them.
    """
    from ckptlin.backtest import backtest
    from ckptlin.checkpoints import RunTrajectories
    from ckptlin.gram import gram
    from ckptlin.methods import parse_methods, split_methods
    from ckptlin.scores import MIN_ORIGIN
    from ckptlin.segments import segments_to_dict, warn_of_jumps
    from ckptlin.source import open_source

    specs = None if methods is None else parse_methods(split_methods(methods))
    opened = open_source(source, base=base, skip_incomplete=skip_incomplete)
    progress = progress_bars(quiet)
    if isinstance(opened, RunTrajectories):
        note_skipped(progress, opened.skipped)
    grams = gram(
        opened,
        steps=steps,
        segment=segment,
        include=include,
        exclude=exclude,
        memory_bytes=memory,
        num_workers=workers,
        scheduler=scheduler,
        processes=processes,
        keep=not no_keep,
        progress=progress,
    )
    result = backtest(grams, specs)
    for warning in warn_of_jumps(
        grams.steps,
        opened.jumps,
        "predictions whose origin and target lie on two sides of a jump mislead",
        min_steps=MIN_ORIGIN + 1,
    ):
        progress.note(warning)
    if csv_path is not None:
        write_csv(csv_path, result.to_rows())
    if figure_path is not None:
        from ckptlin.report import draw_backtest, save_figure

        save_figure(draw_backtest(result, name=opened.location), figure_path)
    if as_json:
        divided = segments_to_dict(grams.steps, opened.jumps)
        print_json({"source": opened.location, **result.to_dict(), **divided})
        return
    _show(result, opened.location, by)


def _show(result: "BacktestResult", location: str, by: str | None) -> None:
    from ckptlin.backtest import HORIZONS
    from ckptlin.store.store import describe_steps

    num_params = quantity(int(result.scores.num_params.sum()))
    click.echo(f"{location}: {describe_steps(result.scores.steps)}, {num_params} parameters")
    click.echo(
        "Skill of predictions of later checkpoints, mean ± spread over origins: 1 is right, 0 no better than\n"
        "keeping the last checkpoint seen.  Horizon: the target, in spans observed.\n"
    )
    columns = [f"{horizon:g}" for horizon in HORIZONS]
    rows = [[name, *(_cell(result.figures(name, horizon)) for horizon in HORIZONS)] for name in result.names]
    ceilings = [verdict.ceiling for verdict in result.horizons]
    rows.append(["rounding allows", *("-" if c is None else f"{c:.2f}       " for c in ceilings)])
    echo_table(["method", *columns], rows)
    if by is not None:
        click.echo("\nThe best method for each kind of tensor, in hindsight\n")
        sizes = zip(result.scores.kinds, result.scores.num_params.tolist(), strict=True)
        echo_table(
            ["kind", "params", *columns],
            [[kind, quantity(n), *(_best(result, horizon, kind) for horizon in HORIZONS)] for kind, n in sizes],
        )
    click.echo()
    for sentence in result.sentences():
        click.echo(sentence)


def _cell(figures: "SkillFigures | None") -> str:
    if figures is None:
        return "-"
    if figures.mean < _HOPELESS:
        return "< -10"
    spread = f" ± {min(figures.std, 99.99):.2f}" if figures.num_origins > 1 else ""
    return f"{figures.mean:.2f}{spread:<7}"


def _best(result: "BacktestResult", horizon: float, kind: str) -> str:
    found: list[tuple[float, str]] = []
    for name in result.names[:-1]:
        figures = result.figures(name, horizon, kind)
        if figures is not None:
            found.append((figures.mean, name))
    if not found:
        return "-"
    mean, name = max(found)
    return f"{name} {mean:.2f}" if mean > 0.0 else "none"
