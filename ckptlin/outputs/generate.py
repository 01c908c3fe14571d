"""Let one model, or a pair of checkpoints, answer prompts: by the evaluator's engines, without grading."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.evaluate.engines import EngineOptions, Request, open_engine
from ckptlin.evaluate.prompts import ModelText
from ckptlin.evaluate.samples import Sample
from ckptlin.evaluate.sampling import Sampling
from ckptlin.logits import is_pair, read_pair
from ckptlin.problems import Problem, PromptTemplate

__all__ = ["Answer", "GenerationResult", "generate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and what was asked.

    Attributes
    ----------
    problem : Problem
    sample : Sample
    """

    problem: Problem
    sample: Sample

    def to_dict(self) -> dict[str, Any]:
        """Return it as a line of a file has it: a line of the evaluator's samples, and the problem."""
        return self.sample.to_dict() | {"problem": self.problem.problem}


@dataclass(frozen=True)
class GenerationResult:
    """Answers to prompts.

    Attributes
    ----------
    source : dict
        The model's directory, or the pair.
    engine : dict
        What the answers depend on: versions, device, dtype.
    sampling : dict
    answers : tuple of Answer
        Prompt after prompt, and of one prompt by their number.
    elapsed_s : float
        Of the generation alone.
    """

    source: dict[str, Any]
    engine: dict[str, Any]
    sampling: dict[str, Any]
    answers: tuple[Answer, ...] = field(repr=False)
    elapsed_s: float

    @property
    def num_tokens(self) -> int:
        """Of all answers."""
        return sum(len(answer.sample.token_ids) for answer in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "source": self.source,
            "engine": self.engine,
            "sampling": self.sampling,
            "num_tokens": self.num_tokens,
            "elapsed_s": self.elapsed_s,
            "answers": [answer.to_dict() for answer in self.answers],
        }


def generate(
    model: Path,
    problems: Sequence[Problem],
    *,
    template: PromptTemplate,
    sampling: Sampling,
    engine: str,
    options: EngineOptions,
    on_answers: Callable[[int], None] = lambda num_answers: None,
) -> GenerationResult:
    """Let a model answer each prompt ``sampling.num_samples`` times.

    Parameters
    ----------
    model : Path
        Directory of a model, or of a pair (`ckptlin.logits.write_pair`).
    problems : sequence of Problem
        Each with an id of its own, which decides the seeds of its answers.
    template : PromptTemplate
    sampling : Sampling
    engine : str
        ``vllm`` or ``hf``.
    options : EngineOptions
        Their ``max_model_len`` is not looked at: it is what the longest prompt needs.
    on_answers : callable
        Hears how many answers have come, some at a time.

    Raises
    ------
    InputError
        If there is no prompt, the model cannot be loaded, or a prompt does not fit into its context.
    SelectionError, MissingExtraError
        If there is no such engine, or it is not installed.
    """
    if not problems:
        raise InputError("there is no prompt; give one, or a file of them")
    source = {"pair": read_pair(model).to_dict()} if is_pair(model) else {"model": str(model)}
    text = ModelText(model)
    prompts = text.encode(problems, template)
    asked = [(index, sample) for index in range(len(problems)) for sample in range(sampling.num_samples)]
    requests = [
        Request(prompts[index], sampling.seed_of(problems[index].id, sample)) for index, sample in asked
    ]
    longest = max(map(len, prompts)) + sampling.max_tokens
    answers: dict[int, Answer] = {}
    with ExitStack() as stack:
        opened = stack.enter_context(open_engine(engine, replace(options, max_model_len=longest)))
        opened.load(model)
        started = time.perf_counter()
        for generations in opened.generate(requests, sampling, stop_ids=text.stop_ids):
            texts = text.decode([generation.token_ids for generation in generations])
            for generation, written in zip(generations, texts, strict=True):
                index, number = asked[generation.index]
                sample = Sample(
                    problem_id=problems[index].id,
                    sample=number,
                    seed=requests[generation.index].seed,
                    text=written,
                    finished=generation.finished,
                    token_ids=generation.token_ids,
                )
                answers[generation.index] = Answer(problems[index], sample)
            on_answers(len(generations))
        elapsed_s = time.perf_counter() - started
        described = opened.describe()
    ordered = tuple(answers[index] for index in range(len(requests)))
    return GenerationResult(source, described, sampling.to_dict(), ordered, elapsed_s)
