"""The samples of a model, graded and summed up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.evaluate.directory import EvaluationDirectory
from ckptlin.evaluate.listener import EvaluationListener
from ckptlin.evaluate.metrics import summarise
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.evaluate.plan import EvaluationPlan
from ckptlin.evaluate.results import ModelResult
from ckptlin.evaluate.samples import Sample, read_samples
from ckptlin.evaluate.scoring import grade_answers
from ckptlin.grading import Completion

__all__ = ["grade_model"]


def grade_model(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    model: EvaluatedModel,
    *,
    ks: Sequence[int] | None,
    listener: EvaluationListener,
) -> ModelResult:
    """Grade a model's samples, or take what was found before, and sum it up.

    Parameters
    ----------
    plan : EvaluationPlan
    directory : EvaluationDirectory
        With all samples of the model.
    model : EvaluatedModel
    ks : sequence of int, optional
        Of pass@k and maj@k.
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
    num_tokens = [np.array([len(sample.token_ids) for sample in row]) for row in answers]
    votes = kept["votes"]
    summary = summarise(
        [np.array(kept["scores"][problem.id], np.float64) for problem in plan.problems],
        votes=None if votes is None else [np.array(votes[problem.id], np.int64) for problem in plan.problems],
        num_tokens=num_tokens,
        finished=[np.array([sample.finished for sample in row]) for row in answers],
        empty=[np.array([not sample.text.strip() for sample in row]) for row in answers],
        ks=ks,
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


def _answers(plan: EvaluationPlan, directory: EvaluationDirectory, label: str) -> list[list[Sample]]:
    """Read the answers to each problem, by their number; those beyond the plan's are left out."""
    places = {problem.id: index for index, problem in enumerate(plan.problems)}
    answers: list[list[Sample]] = [[] for _ in plan.problems]
    for sample in read_samples(directory.samples_path(label)):
        if sample.sample < plan.sampling.num_samples:
            answers[places[sample.problem_id]].append(sample)
    return [sorted(row, key=lambda sample: sample.sample) for row in answers]


def _scores(
    plan: EvaluationPlan,
    directory: EvaluationDirectory,
    label: str,
    answers: Sequence[Sequence[Sample]],
    listener: EvaluationListener,
) -> dict[str, Any]:
    """Grade answers, unless the same grader has graded them before."""
    spec = {
        "grader": plan.task.grader,
        "parameters": dict(plan.task.grader_parameters),
        "num_samples": plan.sampling.num_samples,
    }
    kept = directory.scores(label)
    if kept is not None and kept["spec"] == spec:
        return kept
    listener.on_grading(label, sum(map(len, answers)))
    completions = [[Completion(sample.text, sample.finished) for sample in row] for row in answers]
    with plan.task.open_grader() as grader:
        graded = grade_answers(grader, plan.problems, completions)
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
