"""``ckptlin generate``."""

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptlin_cli.model_options import (
    EngineChoice,
    SamplingChanges,
    engine_options,
    prompt_options,
    sampling_options,
)
from ckptlin_cli.options import command as make_command
from ckptlin_cli.options import json_option, not_empty, print_json, quiet_option
from ckptlin_cli.tables import echo_pairs

if TYPE_CHECKING:
    from ckptlin.outputs import GenerationResult
    from ckptlin.problems import Problem

__all__ = ["command"]

_MAX_TOKENS = 1024  # unless the user says more


@make_command(
    "generate",
    examples=[
        "ckptlin generate --base ./checkpoint-100 --second ./checkpoint-200 --target-step 300 --prompt 1+2=",
        "ckptlin generate --base run/checkpoint-200 --data problems.jsonl --samples 4 --out answers.jsonl",
    ],
)
@click.option(
    "--base",
    required=True,
    callback=not_empty,
    metavar="[STEP=]PATH",
    help="Checkpoint that answers; with --second, where the line begins.",
)
@click.option(
    "--second",
    callback=not_empty,
    metavar="[STEP=]PATH",
    help="A later checkpoint of the same run: logits are extrapolated from both.",
)
@click.option("--target-step", type=int, metavar="N", help="Step that logits are extrapolated to.")
@click.option("--alpha", type=float, help="Instead: base + ALPHA · (second − base).")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be given several times.")
@click.option(
    "--data", callback=not_empty, metavar="FILE", help="Problems as JSONL, JSON or parquet, or `sums`."
)
@click.option("--split", metavar="SPLIT", help="Of the data, where there are several.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N problems.")
@prompt_options
@sampling_options
@engine_options
@click.option(
    "--out", "out_path", type=click.Path(path_type=Path), callback=not_empty, help="Answers as JSONL."
)
@click.option(
    "--write-pair",
    "pair_dir",
    type=click.Path(path_type=Path),
    callback=not_empty,
    metavar="DIR",
    help="Keep the directory that stands for both checkpoints, to be served by vLLM; needs no prompt.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@json_option
@quiet_option
def command(
    base: str,
    second: str | None,
    target_step: int | None,
    alpha: float | None,
    prompts: tuple[str, ...],
    data: str | None,
    split: str | None,
    limit: int | None,
    template: str | None,
    chat: bool | None,
    sampling: SamplingChanges,
    engine: EngineChoice,
    out_path: Path | None,
    pair_dir: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let a checkpoint answer prompts, or two of a run by extrapolated logits.

    With --second both checkpoints run side by side, and every token is drawn from the logits that lie on the
    line through theirs, at --target-step or at --alpha.
    """
    from ckptlin.evaluate.engines import default_engine
    from ckptlin.evaluate.models import resolve_models
    from ckptlin.evaluate.sampling import Sampling
    from ckptlin.logits import make_pair, write_pair
    from ckptlin.outputs import generate
    from ckptlin.problems import get_template

    _check(second, target_step, alpha, pair_dir)
    _check_output(out_path, overwrite=overwrite)
    problems = _problems(prompts, data, split=split, limit=limit, is_optional=pair_dir is not None)
    drawn = sampling.applied_to(Sampling(num_samples=1, max_tokens=_MAX_TOKENS))
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="ckptlin-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        if second is not None:
            pair = make_pair(base, second, target=target_step, alpha=alpha)
            model = write_pair(pair, pair_dir or scratch / "pair", overwrite=overwrite)
            if not problems:
                _echo_pair(pair.to_dict(), model, as_json=as_json)
                return
        else:
            model = stack.enter_context(_only(resolve_models([base])).open(scratch))
        result = generate(
            model,
            problems,
            template=get_template(template or "plain", chat=chat),
            sampling=drawn,
            engine=engine.name or default_engine(),
            options=engine.options(),
            on_answers=stack.enter_context(_bar(len(problems) * drawn.num_samples, quiet=quiet)),
        )
    if out_path is not None:
        _write(result, out_path)
    if as_json:
        print_json(result.to_dict())
    elif out_path is None:
        _echo_answers(result)
    else:
        _echo_summary(result, out_path)


def _check(second: str | None, target_step: int | None, alpha: float | None, pair_dir: Path | None) -> None:
    from ckptlin.errors import InputError

    if second is None:
        for option, value in (("--target-step", target_step), ("--alpha", alpha), ("--write-pair", pair_dir)):
            if value is not None:
                raise InputError(f"{option} goes with two checkpoints; give the later one as --second")
    elif (target_step is None) == (alpha is None):
        raise InputError("give one of --target-step and --alpha: how far the logits are extrapolated")


def _check_output(path: Path | None, *, overwrite: bool) -> None:
    from ckptlin.errors import InputError, OutputExistsError

    if path is None:
        return
    if path.exists() and (path.is_dir() or not overwrite):
        raise OutputExistsError(f"{path} is there already; give another file, or --overwrite")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path} lies in no directory that exists; make {path.parent} first")


def _problems(
    prompts: tuple[str, ...], data: str | None, *, split: str | None, limit: int | None, is_optional: bool
) -> "tuple[Problem, ...]":
    from ckptlin.errors import InputError
    from ckptlin.problems import Problem, load_problems

    if prompts and data:
        raise InputError("give --prompt or --data, not both")
    if data:
        return load_problems(data, split=split, limit=limit)
    for option, value in (("--split", split), ("--limit", limit)):
        if value is not None:
            raise InputError(f"{option} goes with --data")
    if not prompts and not is_optional:
        raise InputError("there is nothing to answer; give --prompt TEXT or --data FILE")
    return tuple(Problem(prompt, id=f"prompt-{number}") for number, prompt in enumerate(prompts))


def _only(models: tuple[Any, ...]) -> Any:
    from ckptlin.errors import InputError

    if len(models) != 1:
        raise InputError(f"--base stands for {len(models)} models; give one checkpoint")
    return models[0]


def _bar(total: int, *, quiet: bool) -> Any:
    """Return a context that yields what advances a bar on stderr."""
    import sys
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if quiet or not sys.stderr.isatty():
            yield lambda num_answers: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bars:
            task = bars.add_task("answers", total=total)
            yield lambda num_answers: bars.advance(task, num_answers)

    return bar()


def _write(result: "GenerationResult", path: Path) -> None:
    from ckptlin.atomic import write_file

    lines = (json.dumps(answer.to_dict(), ensure_ascii=False) for answer in result.answers)
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def _echo_pair(pair: dict[str, Any], directory: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(pair | {"directory": str(directory)})
        return
    steps = "" if pair["steps"] is None else f" of steps {pair['steps'][0]} and {pair['steps'][1]}"
    echo_pairs(
        [
            ("wrote", str(directory)),
            ("pair", f"{pair['base']} and {pair['second']}{steps}"),
            ("alpha", f"{pair['alpha']:g}"),
            ("serve it by", f"python -m vllm.entrypoints.openai.api_server --model {directory}"),
        ]
    )


def _echo_answers(result: "GenerationResult") -> None:
    for answer in result.answers:
        sample = answer.sample
        if sample.sample == 0:
            click.echo(f"> {answer.problem.problem}")
        click.echo(sample.text if sample.finished else f"{sample.text} [cut off]")


def _echo_summary(result: "GenerationResult", path: Path) -> None:
    finished = sum(answer.sample.finished for answer in result.answers)
    echo_pairs(
        [
            ("answers", f"{len(result.answers):,}, {finished:,} of them with an end"),
            (
                "tokens",
                f"{result.num_tokens:,}, {result.num_tokens / max(result.elapsed_s, 1e-9):,.0f} a second",
            ),
            ("wrote", str(path)),
        ]
    )
