"""Let models answer what they have not answered yet: one engine for all of them, one after the other."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckptlin.errors import InputError
from ckptlin.evaluate.directory import EvaluationDirectory
from ckptlin.evaluate.engines import Engine, Generation, Request, open_engine
from ckptlin.evaluate.listener import EvaluationListener
from ckptlin.evaluate.models import EvaluatedModel, fingerprint_of
from ckptlin.evaluate.plan import EvaluationPlan
from ckptlin.evaluate.prompts import ModelText
from ckptlin.evaluate.samples import Sample
from ckptlin.evaluate.sampling import Sampling
from ckptlin.evaluate.tally import Tally

__all__ = ["answer_all", "fit_into_context"]


def answer_all(plan: EvaluationPlan, directory: EvaluationDirectory, listener: EvaluationListener) -> None:
    """Let every model of a plan answer what is missing in the directory.

    Raises
    ------
    InputError
        If a model cannot be loaded, is another than the one whose samples are there, or reads other tokens.
    MissingExtraError
        If the engine is not installed.
    DiskFullError
        If samples could not be written; those before are kept.
    """
    with ExitStack() as stack:
        answering = _Answering(plan, directory, listener, stack)
        for model in plan.models:
            answering.answer(model)


class _Answering:
    """The engine, which is started for the first model that needs it, and how far it is."""

    def __init__(
        self,
        plan: EvaluationPlan,
        directory: EvaluationDirectory,
        listener: EvaluationListener,
        stack: ExitStack,
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._listener = listener
        self._stack = stack
        self._engine: Engine | None = None
        self._pending: dict[str, list[tuple[int, int]]] = {}
        for model in plan.models:
            done = directory.done(model.label)
            missing = [
                (index, sample)
                for index, problem in enumerate(plan.problems)
                for sample in range(plan.sampling.num_samples)
                if (problem.id, sample) not in done
            ]
            if missing:
                self._pending[model.label] = missing
        self._tally = Tally(self._pending, num_problems=len(plan.problems), num_samples=plan.num_samples)

    def answer(self, model: EvaluatedModel) -> None:
        """Let a model answer; one that has answered all must only be the one that did."""
        label, directory = model.label, self._directory
        if label not in self._pending:
            directory.note_model(model, partial(_fingerprint, model, directory.scratch))
            return
        self._listener.on_loading(label, "preparing the model")
        with model.open(directory.scratch) as place:
            text = ModelText(place)
            prompts = text.encode(self._plan.problems, self._plan.template)
            directory.note_prompts(text.fingerprint, prompts, self._plan.problems, label=label)
            directory.note_model(model, partial(fingerprint_of, place))
            sampling = fit_into_context(
                self._plan.sampling, text, prompts, label=label, listener=self._listener
            )
            engine = self._loaded(place, max(map(len, prompts)) + sampling.max_tokens, label)
            directory.note_engine(label, engine.describe() | {"name": self._plan.engine})
            self._generate(label, engine, text, prompts, sampling)

    def _loaded(self, place: Path, max_model_len: int, label: str) -> Engine:
        if self._engine is None:
            self._listener.on_loading(label, f"starting the engine {self._plan.engine}")
            options = replace(self._plan.options, max_model_len=max_model_len)
            self._engine = self._stack.enter_context(open_engine(self._plan.engine, options))
        else:
            self._listener.on_loading(label, "loading the model")
        self._engine.load(place)
        return self._engine

    def _generate(
        self,
        label: str,
        engine: Engine,
        text: ModelText,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
    ) -> None:
        """Generate the samples of a model that are not there yet, each on the disk before it counts."""
        pending, problems, tally = self._pending[label], self._plan.problems, self._tally
        requests = [
            Request(prompts[index], sampling.seed_of(problems[index].id, sample)) for index, sample in pending
        ]

        def sample_of(generation: Generation, written: str) -> Sample:
            index, sample = pending[generation.index]
            return Sample(
                problem_id=problems[index].id,
                sample=sample,
                seed=requests[generation.index].seed,
                text=written,
                finished=generation.finished,
                token_ids=generation.token_ids,
            )

        tally.begin(label)
        with self._directory.open_samples(label) as samples:
            self._listener.on_samples(tally.count())
            try:
                for generations in engine.generate(requests, sampling, stop_ids=text.stop_ids):
                    texts = text.decode([generation.token_ids for generation in generations])
                    samples.append(list(map(sample_of, generations, texts)))
                    tally.add(
                        [pending[g.index][0] for g in generations], sum(len(g.token_ids) for g in generations)
                    )
                    self._listener.on_samples(tally.count())
            finally:
                self._directory.note_generation(label, num_tokens=tally.tokens, elapsed_s=tally.elapsed_s)


def fit_into_context(
    sampling: Sampling,
    text: ModelText,
    prompts: Sequence[Sequence[int]],
    *,
    label: str,
    listener: EvaluationListener,
) -> Sampling:
    """Shorten answers to what a model's context has room for behind the longest prompt, and say so.

    Raises
    ------
    InputError
        If a prompt fills the context.
    """
    if text.context is None:
        return sampling
    longest = max(map(len, prompts))
    room = text.context - longest
    if room < 1:
        raise InputError(
            f"the longest prompt has {longest:,} tokens, and model {label} a context of {text.context:,}; "
            "leave long problems out of the data"
        )
    if sampling.max_tokens <= room:
        return sampling
    listener.note(
        f"answers of {label} are cut off after {room:,} tokens instead of {sampling.max_tokens:,}: its "
        f"context of {text.context:,} has no more room behind the longest prompt ({longest:,})"
    )
    return replace(sampling, max_tokens=room)


def _fingerprint(model: EvaluatedModel, scratch: Path) -> str:
    with model.open(scratch) as place:
        return fingerprint_of(place)
