"""``ckptlin evaluate``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptlin_cli.model_options import (
    EngineChoice,
    SamplingChanges,
    engine_options,
    prompt_options,
    sampling_options,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import (
    csv_option,
    figure_option,
    json_option,
    not_empty,
    print_json,
    quiet_option,
    source_options,
    steps_option,
)
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.sample_progress import SampleProgress
from ckptlin_cli.summaries import SummaryRow, echo_summaries, parse_ks, summary_rows
from ckptlin_cli.tables import echo_pairs, write_csv

if TYPE_CHECKING:
    from ckptlin.evaluate.evaluator import EvaluationPlan
    from ckptlin.evaluate.results import EvaluationResult

__all__ = ["command"]


@make_command(
    "evaluate",
    examples=[
        "ckptlin evaluate ./run --steps 0:1000:500 --task sums --limit 4 --out ./sums-of-run",
        "ckptlin evaluate ./run.store --step 1500 --task problems.jsonl --samples 16 --plot curve.png",
    ],
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL|RUN|STORE|STEP=PATH...")
@click.option(
    "--task",
    "task_name",
    required=True,
    callback=not_empty,
    metavar="NAME|FILE",
    help="See `ckptlin tasks`; or a file of problems and answers of your own.",
)
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path),
    callback=not_empty,
    help="Directory of samples and results.  [default: ./evaluation-TASK]",
)
@steps_option
@click.option(
    "--step",
    "targets",
    type=int,
    multiple=True,
    metavar="STEP",
    help="Extrapolate the store or run to this step, and evaluate that too; may be repeated.",
)
@click.option(
    "--method", default="auto", show_default=True, metavar="NAME[:KEY=VALUE,...]", help="That extrapolates."
)
@click.option("--seen", "window", metavar="WINDOW", help="Steps that the extrapolation sees.  [default: all]")
@source_options
@click.option("--data", metavar="FILE", help="The task's data as JSONL, JSON or parquet.  [default: the hub]")
@click.option("--split", metavar="SPLIT", help="Of the data, where there are several.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N problems.")
@click.option(
    "--window",
    "dates",
    metavar="FROM:TO",
    help="Only problems of these dates (livecodebench), such as 2024-08-01:2025-02-01, ends included.",
)
@prompt_options
@click.option("--grader", metavar="NAME", help="exact, math, code, or package.module:function.")
@sampling_options
@click.option("--k", "ks", metavar="LIST", help="Of pass@k and maj@k.  [default: 1, 2, 4, ... up to --samples]")
@click.option(
    "--against", "baseline", metavar="LABEL", help="Model that others are compared with.  [default: first]"
)
@engine_options
@csv_option
@figure_option("--plot", "Draw what is solved against the step")
@click.option("--overwrite", is_flag=True, help="Remove the samples that are there, and begin anew.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
@quiet_option
def command(
    models: tuple[str, ...],
    task_name: str,
    out_dir: Path | None,
    steps: str | None,
    targets: tuple[int, ...],
    method: str,
    window: str | None,
    base: str | None,
    skip_incomplete: bool,
    data: str | None,
    split: str | None,
    limit: int | None,
    dates: str | None,
    template: str | None,
    chat: bool | None,
    grader: str | None,
    sampling: SamplingChanges,
    ks: str | None,
    baseline: str | None,
    engine: EngineChoice,
    csv_path: Path | None,
    figure_path: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let models answer a task's problems, grade the answers, and compare the models.

    One engine answers for all models, one after the other.  Every answer is on the disk when it comes: the same
    command goes on where a killed one was, and with more --samples it adds what is missing.
    """
    # torch reads it when it is loaded; vLLM's CPU build lets it say where memory is bound.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ckptlin.evaluate.evaluator import evaluate, plan_evaluation
    from ckptlin.evaluate.models import resolve_models
    from ckptlin.evaluate.tasks import open_task

    task = open_task(
        task_name, data=data, split=split, limit=limit, window=dates, template=template, grader=grader
    )
    progress = progress_bars(quiet)
    plan = plan_evaluation(
        resolve_models(
            models,
            steps=steps,
            targets=targets,
            method=method,
            window=window,
            base=base,
            skip_incomplete=skip_incomplete,
            progress=progress,
        ),
        task,
        out_dir or Path(f"evaluation-{Path(task.name).stem}"),
        chat=chat,
        sampling=sampling.applied_to(task.sampling),
        engine=engine.name,
        options=engine.options(),
        overwrite=overwrite,
    )
    if dry_run:
        _echo_plan(plan, as_json=as_json)
        return
    with SampleProgress(is_quiet=quiet) as listener:
        result = evaluate(plan, ks=parse_ks(ks), baseline=baseline, overwrite=overwrite, listener=listener)
    if figure_path is not None:
        _draw(result, figure_path)
    rows = {model.label: model.summary for model in result.models}
    if csv_path is not None:
        write_csv(csv_path, summary_rows(rows))
    if as_json:
        print_json(result.to_dict())
        return
    _echo_result(result, every_k=ks is not None)


def _echo_plan(plan: "EvaluationPlan", *, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_dict())
        return
    sampling = plan.sampling
    done = sum(plan.done.values())
    echo_pairs(
        [
            ("task", f"{plan.task.name}, {len(plan.problems):,} problems from {plan.task.source}"),
            ("models", ", ".join(model.label for model in plan.models)),
            (
                "samples",
                f"{plan.num_samples * len(plan.models):,}, {sampling.num_samples} a problem and model; "
                f"{done:,} are there already",
            ),
            (
                "sampling",
                f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, at most "
                f"{sampling.max_tokens:,} tokens, seed {sampling.seed}",
            ),
            ("grader", plan.task.grader),
            ("engine", plan.engine),
            ("out", str(plan.out_dir)),
        ]
    )


def _echo_result(result: "EvaluationResult", *, every_k: bool) -> None:
    sampling = result.sampling
    click.echo(
        f"{result.task['name']}: {sampling['num_samples']} answers to each problem at temperature "
        f"{sampling['temperature']:g}"
    )
    click.echo()
    lengths = [model.summary.lengths for model in result.models]
    rows = [
        SummaryRow(model.label, model.summary, found.share_truncated, found.num_empty)
        for model, found in zip(result.models, lengths, strict=True)
        if found is not None
    ]
    echo_summaries("model", rows, every_k=every_k)
    if result.comparisons:
        click.echo()
    for label, found in result.comparisons.items():
        click.echo(found.verdict(first=result.baseline, second=label))
    for model in result.models:
        for note in model.notes:
            click.echo(f"note: {model.label}: {note}", err=True)
    click.echo()
    echo_pairs(
        [("samples", str(result.out_dir / "samples")), ("results", str(result.out_dir / "results.json"))]
    )


def _draw(result: "EvaluationResult", path: Path) -> None:
    from ckptlin.report import ScoredModel, draw_evaluation, save_figure

    estimates = result.models[0].summary.estimates
    names = list(estimates)
    # The mean, the best of all answers, and the vote of all answers, as far as there are several.
    chosen = [names[0], *(n for n in reversed(names) if n.startswith("pass@"))][:2]
    chosen += [n for n in reversed(names) if n.startswith("maj@")][:1]
    models = [
        ScoredModel(
            model.label,
            model.step,
            model.method,
            {
                name: (found.value, found.over_samples.low, found.over_samples.high)
                for name in dict.fromkeys(chosen)
                for found in (model.summary.estimates[name],)
            },
        )
        for model in result.models
    ]
    num_samples = result.sampling["num_samples"]
    lines = [
        f"{result.models[0].summary.num_problems:,} problems, {num_samples} answers to each at temperature "
        f"{result.sampling['temperature']:g}; bars: 95% over answers to these problems"
    ]
    save_figure(draw_evaluation(models, title=f"What is solved of {result.task['name']}", lines=lines), path)
