"""What an evaluation found: figures of every model, and by how much they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptlin.evaluate.metrics import Comparison, Summary

__all__ = ["EvaluationResult", "ModelResult"]


@dataclass(frozen=True)
class ModelResult:
    """A model on the problems of a task.

    Attributes
    ----------
    label : str
    step : int or None
    origin : str
        ``checkpoint``, ``extrapolated`` or ``hub``.
    method : str or None
        Of an extrapolated one.
    source : str
    fingerprint : str
        Of its weights, see `ckptlin.evaluate.models.fingerprint_of`.
    engine : mapping
        What answered for it, as plain data.
    summary : Summary
    num_tokens : int
        Of all answers.
    tokens_per_s : float or None
        Over the time that generating took; None where that is not known.
    notes : tuple of str
        What was out of the ordinary in generating and grading.
    scores : mapping of str to list of float
        By problem.
    """

    label: str
    step: int | None
    origin: str
    method: str | None
    source: str
    fingerprint: str
    engine: Mapping[str, Any]
    summary: Summary
    num_tokens: int
    tokens_per_s: float | None
    notes: tuple[str, ...]
    scores: Mapping[str, list[float]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "label": self.label,
            "step": self.step,
            "origin": self.origin,
            "method": self.method,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "engine": dict(self.engine),
            **self.summary.to_dict(),
            "num_tokens": self.num_tokens,
            "tokens_per_s": self.tokens_per_s,
            "notes": list(self.notes),
            "scores": dict(self.scores),
        }


@dataclass(frozen=True)
class EvaluationResult:
    """All models of an evaluation.

    Attributes
    ----------
    out_dir : Path
    task, sampling : mapping
        What they were asked, and how answers were drawn, as plain data.
    models : tuple of ModelResult
        In the order of their steps.
    baseline : str
        Label of the model that the others are compared with.
    comparisons : mapping of str to Comparison
        Of every other model with the baseline, by label.
    versions : mapping of str to str
    elapsed_s : float
    """

    out_dir: Path
    task: Mapping[str, Any]
    sampling: Mapping[str, Any]
    models: tuple[ModelResult, ...]
    baseline: str
    comparisons: Mapping[str, Comparison]
    versions: Mapping[str, str]
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data: the content of ``results.json``."""
        return {
            "format": 1,
            "task": dict(self.task),
            "sampling": dict(self.sampling),
            "models": [model.to_dict() for model in self.models],
            "baseline": self.baseline,
            "comparisons": {
                label: found.to_dict() | {"verdict": found.verdict(first=self.baseline, second=label)}
                for label, found in self.comparisons.items()
            },
            "versions": dict(self.versions),
            "elapsed_s": self.elapsed_s,
        }
