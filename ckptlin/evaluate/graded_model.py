"""The samples of a model, graded and summed up."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.evaluate.directory import EvaluationDirectory
from ckptlin.evaluate.listener import EvaluationListener
from ckptlin.evaluate.metrics import summarise
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.evaluate.plan import EvaluationPlan
from ckptlin.evaluate.results import ModelResult
from ckptlin.evaluate.samples import read_samples
from ckptlin.evaluate.scoring import grade_answers
from ckptlin.grading import Completion
from ckptlin.versions import installed_versions

__all__ = ["grade_model"]


def grade_model(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    model: EvaluatedModel,
    *,
    listener: EvaluationListener,
) -> ModelResult:
    """Grade a model's samples, or take what was found before, and sum it up.

    Parameters
    ----------
    plan : EvaluationPlan
    directory : EvaluationDirectory
        With all samples of the model.
    model : EvaluatedModel
    listener : EvaluationListener

    Raises
    ------
    GradingError
        If a user's function raises, or returns no score.
    """
    label = model.label
    answers = _answers(plan, directory, label)
    kept = _scores(plan, directory, label, answers, listener)
    record = directory.model_record(label) or {}
    generated = record.get("generated", {"tokens": 0, "seconds": 0.0})
    num_tokens = [np.array([answer.num_tokens for answer in row]) for row in answers]
    votes = kept["votes"]
    summary = summarise(
        [np.array(kept["scores"][problem.id], np.float64) for problem in plan.problems],
        votes=None if votes is None else [np.array(votes[problem.id], np.int64) for problem in plan.problems],
        num_tokens=num_tokens,
        finished=[np.array([answer.completion.finished for answer in row]) for row in answers],
        empty=[np.array([not answer.completion.text.strip() for answer in row]) for row in answers],
        ks=plan.ks,
    )
    return ModelResult(
        label=label,
        step=model.step,
        origin=model.origin,
        method=model.method,
        source=model.source,
        fingerprint=str(record.get("fingerprint")),
        engine=record.get("engine", {}),
        summary=summary,
        num_tokens=int(sum(row.sum() for row in num_tokens)),
        tokens_per_s=generated["tokens"] / generated["seconds"] if generated["seconds"] else None,
        notes=tuple(kept["notes"]),
        scores=kept["scores"],
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """A sample without its tokens, which are only counted."""

    sample: int
    completion: Completion
    num_tokens: int


def _answers(plan: EvaluationPlan, directory: EvaluationDirectory, label: str) -> list[list[_Answer]]:
    """Read the answers to each problem, by their number; those beyond the plan's are left out."""
    places = {problem.id: index for index, problem in enumerate(plan.problems)}
    answers: list[list[_Answer]] = [[] for _ in plan.problems]
    for sample in read_samples(directory.samples_path(label)):
        if sample.sample < plan.sampling.num_samples:
            completion = Completion(sample.text, sample.finished)
            answers[places[sample.problem_id]].append(_Answer(sample.sample, completion, len(sample.token_ids)))
    return [sorted(row, key=lambda answer: answer.sample) for row in answers]


def _scores(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    label: str,
    answers: Sequence[Sequence[_Answer]],
    listener: EvaluationListener,
) -> dict[str, Any]:
    """Grade answers, unless the same grader has graded the very same before."""
    spec = _spec(plan, directory.samples_path(label))
    kept = directory.scores(label)
    if kept is not None and kept.get("spec") == spec and ":" not in plan.task.grader:
        return kept
    listener.on_grading(label, sum(map(len, answers)))
    with plan.task.open_grader() as grader:
        graded = grade_answers(
            grader, plan.problems, [[answer.completion for answer in row] for row in answers]
        )
    ids = [problem.id for problem in plan.problems]
    found = {
        "spec": spec,
        "notes": list(graded.notes),
        "scores": dict(zip(ids, map(list, graded.scores), strict=True)),
        "votes": None
        if graded.votes is None
        else dict(zip(ids, (row.tolist() for row in graded.votes), strict=True)),
    }
    directory.keep_scores(label, found)
    return found


def _spec(plan: EvaluationPlan, samples: Path) -> dict[str, Any]:
    """Return what scores depend on, but for a function of the user's, which may change unseen."""
    problems = [problem.to_dict() for problem in plan.problems]
    stat = samples.stat()
    return {
        "grader": plan.task.grader,
        "parameters": dict(plan.task.grader_parameters),
        "problems": hashlib.blake2b(json.dumps(problems, default=str).encode(), digest_size=16).hexdigest(),
        "samples": [stat.st_size, stat.st_mtime_ns],
        "num_samples": plan.sampling.num_samples,
        "versions": installed_versions(["math-verify"]),
    }
