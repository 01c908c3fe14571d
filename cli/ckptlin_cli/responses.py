"""``ckptlin responses``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, not_empty, print_json, quiet_option, source_options, steps_option
from ckptlin_cli.progress import progress_bars
from ckptlin_cli.sample_progress import SampleProgress
from ckptlin_cli.tables import echo_pairs

__all__ = ["command"]


@make_command(
    "responses",
    examples=[
        "ckptlin responses ./run --task sums --limit 2 --samples 2 --engine hf --out responses.jsonl",
        "ckptlin responses ./run/checkpoint-0 --data problems.jsonl --samples 64 --out all.jsonl --dry-run",
    ],
)
@click.argument("model", nargs=-1, required=True, metavar="MODEL|RUN|STORE|STEP=PATH...")
@click.option("--task", "task_name", metavar="NAME", help="Problems of a task, see `ckptlin tasks`.")
@click.option("--data", metavar="FILE", help="Problems of your own, or the task's as a file.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    callback=not_empty,
    metavar="FILE.jsonl",
    help="Responses, a line of JSON each.",
)
@steps_option
@source_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N problems.")
@click.option("--template", metavar="NAME|TEXT", help="Prompt: boxed, plain, or a text with {problem}.")
@click.option(
    "--chat/--no-chat", default=None, help="Whether the prompt is a chat message.  [default: the task's]"
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Responses to each problem.")
@click.option("--temperature", type=float, help="0 takes the likeliest token.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens of this probability together.")
@click.option("--top-k", type=int, help="Draw from so many at most; 0 for all.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Of a response.")
@click.option("--seed", type=int, help="Of the responses.")
@click.option("--engine", metavar="NAME", help="vllm or hf.  [default: vllm where it is installed]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="That the model computes in.",
)
@click.option(
    "--tensor-parallel", type=click.IntRange(min=1), default=1, help="Devices that share the model (vllm)."
)
@click.option("--data-parallel", type=click.IntRange(min=1), default=1, help="Copies of the model (vllm).")
@click.option(
    "--gpu-memory", type=click.FloatRange(0, 1, min_open=True), default=0.9, help="Share that vllm may take."
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Written at once.")
@click.option("--device", metavar="NAME", help="Of hf: cpu, cuda, ...")
@click.option("--overwrite", is_flag=True, help="Remove the responses that are there, and begin anew.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
@quiet_option
def command(
    model: tuple[str, ...],
    task_name: str | None,
    data: str | None,
    out: Path,
    steps: str | None,
    base: str | None,
    skip_incomplete: bool,
    limit: int | None,
    template: str | None,
    chat: bool | None,
    samples: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    max_tokens: int | None,
    seed: int | None,
    engine: str | None,
    dtype: str,
    tensor_parallel: int,
    data_parallel: int,
    gpu_memory: float,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let a model answer problems, and keep the tokens: what `ckptlin logprobs` asks every checkpoint about.

    Of a run or a store the first step answers, or the first that --steps selects.  Every response is on
    the disk when it comes: the same command goes on where a killed one was.
    """
    from ckptlin.errors import InputError
    from ckptlin.evaluate.engines import EngineOptions
    from ckptlin.evaluate.models import resolve_models
    from ckptlin.evaluate.tasks import open_task
    from ckptlin.outputs.respond import plan_responses, respond

    if task_name is None and data is None:
        raise InputError("no problems were given; give --task NAME or --data FILE")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out} lies in no directory that exists; make {out.parent} first")
    task = open_task(task_name or str(data), data=data if task_name else None, limit=limit, template=template)
    given: dict[str, Any] = {
        "num_samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    prompt = task.prompt_template
    found = resolve_models(
        model, steps=steps, base=base, skip_incomplete=skip_incomplete, progress=progress_bars(quiet)
    )
    plan = plan_responses(
        found[0],
        task.load(),
        prompt if chat is None else replace(prompt, chat=chat),
        out,
        sampling=replace(task.sampling, **{name: value for name, value in given.items() if value is not None}),
        engine=engine,
        options=EngineOptions(
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            data_parallel=data_parallel,
            gpu_memory=gpu_memory,
            batch_size=batch_size,
            device=device,
        ),
        overwrite=overwrite,
    )
    if dry_run:
        if as_json:
            print_json(plan.to_dict())
            return
        echo_pairs(
            [
                ("model", plan.model.source),
                ("responses", f"{plan.num_responses:,}, of which {len(plan.missing):,} are missing"),
                ("engine", plan.engine),
                ("out", str(out)),
            ]
        )
        return
    with SampleProgress(is_quiet=quiet) as listener:
        result = respond(plan, overwrite=overwrite, listener=listener)
    if as_json:
        print_json(result.to_dict())
        return
    click.echo(
        f"{out}: {result.num_responses:,} responses of {plan.model.label} to {len(plan.problems):,} problems, "
        f"{result.num_tokens:,} tokens; {result.num_added:,} written now"
    )
