"""Backtest: every method, judged by the checkpoints that a run already has.

Nothing is read and nothing trained: `ckptlin.scores` works the errors out of Gram matrices.  This module groups
them by horizon, says what they mean, and chooses a method for a target.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ckptlin.gram_matrices import GramMatrices
from ckptlin.methods import METHODS, MethodSpec, all_methods, parse_methods
from ckptlin.scores import MIN_ORIGIN, Scores, leading, score
from ckptlin.verdict import Verdict, judge, pick

__all__ = [
    "AUTO",
    "HORIZONS",
    "BacktestResult",
    "HorizonVerdict",
    "SkillFigures",
    "backtest",
    "choose",
    "horizon_bounds",
]

# Targets in spans observed: 2 is as far ahead as the run had come.
HORIZONS = (1.25, 1.5, 2.0, 3.0)
AUTO = "auto"
_BASELINE = "persistence"


class SkillFigures(NamedTuple):
    """Skill of a method at a horizon.

    Attributes
    ----------
    mean, std : float
        Over origins, each the mean over its targets there; std is NaN with one origin.
    low, high : float
        The worst and the best origin.
    num_origins, num_pairs : int
    """

    mean: float
    std: float
    low: float
    high: float
    num_origins: int
    num_pairs: int


class HorizonVerdict(NamedTuple):
    """What the backtest says of a horizon.

    Attributes
    ----------
    horizon : float
    best : str or None
        Method with the highest mean skill, in hindsight; None where none is above 0.
    figures : SkillFigures or None
        Of the best method, or of the least bad; None where no checkpoint lies that far ahead of a prefix.
    auto : SkillFigures or None
        Of the method that the run's past at each origin would have chosen.
    ceiling : float or None
        Mean skill of a prediction that is right up to the rounding of the checkpoints.
    rounding_ratio : float or None
        Squared error of ``auto`` after rounding its prediction to the checkpoints' dtype, over that before,
        estimated from sampled parameters; None without samples.
    """

    horizon: float
    best: str | None
    figures: SkillFigures | None
    auto: SkillFigures | None
    ceiling: float | None
    rounding_ratio: float | None


@dataclass(frozen=True, eq=False, repr=False)
class BacktestResult:
    """Skill of every method at every horizon.

    Attributes
    ----------
    methods : tuple of MethodSpec
        Those that were judged; ``auto`` is a row more.
    scores : Scores
        The error of each prediction, ``auto`` among the methods.
    chosen : tuple of str
        What ``auto`` chose for each pair of ``scores``.
    horizons : tuple of HorizonVerdict
        One for each of `HORIZONS`.
    """

    methods: tuple[MethodSpec, ...]
    scores: Scores
    chosen: tuple[str, ...]
    horizons: tuple[HorizonVerdict, ...]

    def __repr__(self) -> str:
        """Say the verdict in one line: the tables are long."""
        skills = ", ".join(
            f"{v.horizon:g}: {v.best or 'none'}" + (f" {v.figures.mean:.2f}" if v.figures else "")
            for v in self.horizons
        )
        return f"BacktestResult({len(self.scores.steps)} steps, {len(self.methods)} methods; best at {skills})"

    @property
    def names(self) -> tuple[str, ...]:
        """Rows of the tables: every method as `MethodSpec.short`, then ``auto``."""
        return (*(method.short for method in self.methods), AUTO)

    @property
    def reach(self) -> float | None:
        """The furthest horizon up to which a method beats the last checkpoint; None if there is none."""
        reach = None
        for verdict in self.horizons:
            if verdict.figures is None:
                continue
            if verdict.best is None:
                break
            reach = verdict.horizon
        return reach

    def figures(self, method: str, horizon: float, kind: str | None = None) -> SkillFigures | None:
        """Return the skill of a method at a horizon, of a tensor kind or the whole model; None if unknown.

        Predictions belong to the horizon whose logarithm is nearest to that of their reach; see
        `horizon_bounds`.
        """
        return self.figures_within(method, *horizon_bounds(horizon), kind=kind)

    def figures_within(
        self, method: str, low: float, high: float, *, kind: str | None = None
    ) -> SkillFigures | None:
        """Return the skill of a method in predictions that reached from ``low`` to below ``high`` spans."""
        return _figures(self.scores, self.scores.skill(method, kind), low, high)

    def ceiling_within(self, low: float, high: float, *, kind: str | None = None) -> float | None:
        """Return the mean ceiling of predictions that reached from ``low`` to below ``high`` spans."""
        found = _figures(self.scores, self.scores.ceiling(kind), low, high)
        return None if found is None else found.mean

    def sentences(self) -> tuple[str, ...]:
        """Say the verdict in plain words: of each horizon, of rounding where it matters, and of the reach."""
        told = [_sentence(verdict) for verdict in self.horizons if verdict.figures is not None]
        last = max((v.horizon for v in self.horizons if v.figures is not None), default=None)
        if last is None:
            return ("No checkpoint lies far enough ahead of a prefix to be predicted.",)
        ratios = [f"{v.rounding_ratio:.2f}" for v in self.horizons if v.rounding_ratio is not None]
        if any(ratio != "1.00" for ratio in ratios):
            span = min(ratios) if min(ratios) == max(ratios) else f"{min(ratios)} to {max(ratios)}"
            told.append(
                f"Rounded to the checkpoints' dtype, predictions of {AUTO} have {span} of these squared errors."
            )
        if self.reach is None:
            told.append("Nothing beats the last checkpoint at any horizon.")
        elif self.reach < last:
            told.append(f"Beyond {self.reach:g} spans nothing beats the last checkpoint.")
        else:
            told.append(f"Up to {last:g} spans, the furthest that was tried, the last checkpoint is beaten.")
        return tuple(told)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        steps = self.scores.steps
        return {
            "steps": list(steps),
            "tensor_kinds": {
                kind: int(n) for kind, n in zip(self.scores.kinds, self.scores.num_params, strict=True)
            },
            "methods": {method.short: str(method) for method in self.methods},
            "horizons": [
                {
                    "horizon": verdict.horizon,
                    "reach": list(horizon_bounds(verdict.horizon)),
                    "best": verdict.best,
                    "ceiling": verdict.ceiling,
                    "rounding_ratio": verdict.rounding_ratio,
                }
                for verdict in self.horizons
            ],
            "reach": self.reach,
            "verdict": list(self.sentences()),
            "auto_chose": dict(Counter(self.chosen)),
            "skill": self.to_rows(),
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row for each method and horizon, of the whole model and of each kind, as plain data."""
        return [
            {
                "level": "model" if kind is None else "kind",
                "name": "model" if kind is None else kind,
                "method": name,
                "horizon": horizon,
                **(dict.fromkeys(SkillFigures._fields) if found is None else found._asdict()),
            }
            for kind in (None, *self.scores.kinds)
            for name in self.names
            for horizon in HORIZONS
            for found in (self.figures(name, horizon, kind),)
        ]


def backtest(grams: GramMatrices, methods: Sequence[str | MethodSpec] | None = None) -> BacktestResult:
    """Judge methods by predictions of checkpoints that they have not seen.

    Every prefix of at least 3 checkpoints predicts every later one; the skill of a prediction is
    1 − ‖ŵ − w_h‖²/‖w_h − w_last‖²: 0 is no better than keeping the last checkpoint, 1 is right.  Tensors that a
    method keeps unless told otherwise (norms, for ``two-point``) are kept here too.

    Parameters
    ----------
    grams : GramMatrices
        Of at least 4 checkpoints.
    methods : sequence of str or MethodSpec, optional
        As `ckptlin.methods.parse_method` reads them; default all, with their defaults.  The row ``auto`` is
        what `choose` would have used at each origin, by what came before it.

    Raises
    ------
    InputError, SelectionError
        If there are too few checkpoints, no tensors, a Gram matrix is not finite, or a method cannot be read.

    Examples
    --------
    >>> steps = np.arange(0.0, 90.0, 10.0)
    >>> slowing = np.sqrt(steps)
    >>> gram = np.outer(slowing, slowing)
    >>> grams = GramMatrices(tuple(range(0, 90, 10)), {"w": gram}, {"w": 1}, {"w": 0.0}, {})
    >>> result = backtest(grams, ["two-point", "damped"])
    >>> round(result.figures("two-point", 2.0).mean, 2), round(result.figures("damped", 2.0).mean, 2)
    (-1.01, 0.99)
    """
    specs = parse_methods(all_methods() if methods is None else methods)
    scores = score(grams, specs)
    picked = [
        pick(scores, specs, reach, int(origin))
        for reach, origin in zip(scores.reach, scores.origins, strict=True)
    ]
    pairs = np.arange(len(picked))
    errors = np.stack([scores.errors[method.short] for method in specs])
    scores = replace(scores, errors={**scores.errors, AUTO: errors[picked, :, pairs].T})
    verdicts = tuple(_verdict(grams, scores, specs, picked, horizon) for horizon in HORIZONS)
    return BacktestResult(specs, scores, tuple(specs[index].short for index in picked), verdicts)


def choose(
    past: GramMatrices | BacktestResult,
    target: float,
    methods: Sequence[str | MethodSpec] | None = None,
) -> Verdict:
    """Choose the method for a target, by what the checkpoints at hand say: ``--method auto``.

    ``kriging``, unless another method was better in past predictions of about the target's reach by more than
    1.5 standard errors over at least three origins.  With fewer than 4 checkpoints there is no past, and
    ``kriging`` is used; a target that is not after the last step is no matter of prediction, and ``ols`` is.

    Parameters
    ----------
    past : GramMatrices or BacktestResult
        Of the window that the method is to see.
    target : float
        Step to predict.
    methods : sequence of str or MethodSpec, optional
        To choose from; default those of the result, or all.
    """
    if isinstance(past, BacktestResult):
        scores: Scores | None = past.scores
        specs = past.methods if methods is None else parse_methods(methods)
        steps = past.scores.steps
    else:
        specs = parse_methods(all_methods() if methods is None else methods)
        steps = past.steps
        scores = score(past, specs) if len(steps) > MIN_ORIGIN and target > steps[-1] else None
    if target <= steps[-1]:
        span = steps[-1] - steps[0]
        reach = (target - steps[0]) / span if span else 1.0
        reason = (
            f"step {target:g} is not after the last that was observed, {steps[-1]}; nothing is to be judged"
        )
        return Verdict(MethodSpec(METHODS["ols"]), target, reach, None, None, False, False, reason)
    return judge(scores, specs, steps, target)


def horizon_bounds(horizon: float) -> tuple[float, float]:
    """Return from which reach on, and up to which, predictions belong to one of `HORIZONS`.

    Half way to the next horizon in the logarithm; as far below the first and beyond the last as to their
    neighbours (1 and 3·3/2).

    Examples
    --------
    >>> [tuple(round(bound, 3) for bound in horizon_bounds(horizon)) for horizon in HORIZONS]
    [(1.118, 1.369), (1.369, 1.732), (1.732, 2.449), (2.449, 3.674)]
    """
    marks = (1.0, *HORIZONS, HORIZONS[-1] ** 2 / HORIZONS[-2])
    here = marks.index(horizon)
    return float(np.sqrt(marks[here - 1] * horizon)), float(np.sqrt(horizon * marks[here + 1]))


def _within(scores: Scores, low: float, high: float) -> np.ndarray[Any, Any]:
    within: np.ndarray[Any, Any] = (scores.reach >= low) & (scores.reach < high)
    return within


def _figures(scores: Scores, skills: np.ndarray[Any, Any], low: float, high: float) -> SkillFigures | None:
    known = _within(scores, low, high) & ~np.isnan(skills)
    if not known.any():
        return None
    origins = scores.origins[known]
    means = np.array([skills[known][origins == origin].mean() for origin in np.unique(origins)])
    return SkillFigures(
        mean=float(means.mean()),
        std=float(means.std(ddof=1)) if means.size > 1 else np.nan,
        low=float(means.min()),
        high=float(means.max()),
        num_origins=means.size,
        num_pairs=int(known.sum()),
    )


def _verdict(
    grams: GramMatrices,
    scores: Scores,
    methods: Sequence[MethodSpec],
    picked: Sequence[int],
    horizon: float,
) -> HorizonVerdict:
    bounds = horizon_bounds(horizon)
    found = {m.short: _figures(scores, scores.skill(m.short), *bounds) for m in methods if m.name != _BASELINE}
    known = {name: figures for name, figures in found.items() if figures is not None}
    if not known:
        return HorizonVerdict(horizon, None, None, None, None, None)
    best = max(known, key=lambda name: known[name].mean)
    ceiling = _figures(scores, scores.ceiling(), *bounds)
    pairs = np.flatnonzero(_within(scores, *bounds))
    return HorizonVerdict(
        horizon=horizon,
        best=best if known[best].mean > 0.0 else None,
        figures=known[best],
        auto=_figures(scores, scores.skill(AUTO), *bounds),
        ceiling=None if ceiling is None else ceiling.mean,
        rounding_ratio=_rounding_ratio(
            grams, scores, [(methods[picked[pair]], pair) for pair in pairs.tolist()]
        ),
    )


def _rounding_ratio(
    grams: GramMatrices, scores: Scores, predictions: Sequence[tuple[MethodSpec, int]]
) -> float | None:
    """Return Σ‖round(ŵ) − w_h‖² / Σ‖ŵ − w_h‖², tensors weighted by their size, from sampled parameters."""
    steps = np.array(grams.steps, np.float64)
    stack, pooled = grams.stack(), grams.total()
    before = after = 0.0
    for method, pair in predictions:
        num_steps, row = int(scores.origins[pair]), int(scores.held_out[pair])
        found = leading(method, steps, steps[row], stack, pooled, num_steps)
        for index, name in enumerate(grams.names):
            sample = grams.samples.get(name)
            if sample is None or not sample.shape[1]:
                continue
            values = sample[:num_steps].astype(np.float64)
            coefficients = found if found.ndim == 1 else found[index]
            # From the last checkpoint on, so that a parameter that does not move is predicted exactly.
            predicted = values[-1] + coefficients @ (values - values[-1])
            true = sample[row].astype(np.float64)
            weight = grams.num_params[name] / sample.shape[1]
            before += weight * float(((predicted - true) ** 2).sum())
            rounded = predicted.astype(sample.dtype).astype(np.float64)
            after += weight * float(((rounded - true) ** 2).sum())
    return after / before if before > 0.0 else None


def _sentence(verdict: HorizonVerdict) -> str:
    figures, auto = verdict.figures, verdict.auto
    assert figures is not None  # noqa: S101 (the caller leaves out horizons without)
    ceiling = "" if verdict.ceiling is None else f"; rounding allows {verdict.ceiling:.2f}"
    at = f"At {verdict.horizon:g} spans"
    if verdict.best is None:
        return f"{at} nothing beats the last checkpoint{ceiling}."
    chosen = "" if auto is None else f"; chosen beforehand, {auto.mean:.2f}"
    return f"{at} {verdict.best} is best, with a skill of {figures.mean:.2f}{chosen}{ceiling}."
