"""How good the prediction methods are: every method on every run, by rolling origin, from Gram matrices alone.

    python -m benchmarks.methods /scratch/runs/grpo-0 /scratch/runs/grpo-0-bf16 --json build/methods.json

Each prefix of a run of at least three checkpoints is an origin; the targets are the later checkpoints nearest
to 1.25, 1.5, 2 and 3 times the span that the origin has seen. A method sees the prefix only. Its figure is the
squared distance of its prediction to the checkpoint that was trained, over that of the last checkpoint seen
(1 − skill), summed over all tensors: 0 is perfect, 1 no better than standing still. Figures are means over
origins; those of a method over two-point's, at 1.5 to 3 times the span, are what the project's aim is about (at
most two thirds). Two-point predicts every tensor here, norms as well.

``auto`` is what `ckptlin.backtest` chooses at each origin by the past that it has seen. The rows "in hindsight"
know the target and are no methods: the best multiple, tensor by tensor, of the move of wls-anchored, and the
best combination of all moves between the checkpoints seen, which no method that is affine in them can beat.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine, versions
from ckptlin.backtest import AUTO, HORIZONS, backtest
from ckptlin.gram import gram
from ckptlin.gram_matrices import GramMatrices
from ckptlin.methods import METHODS, MethodSpec, parse_method, parse_methods
from ckptlin.source import open_source

__all__ = ["FACTOR", "FREE", "HORIZONS", "Scores", "pairs_of", "ratio", "score_methods"]

AIM = 2 / 3
FEWEST = 3
# Not methods: they know the target, and bound what methods can do.
FACTOR, FREE = "best factor in hindsight", "best combination in hindsight"
_FAR = (1.5, 2.0, 3.0)
_VARIANTS = ("relex:rank=2", "wls-anchored:decay=0.5", "wls-anchored:decay=0.85", "damped:base=two-point")


@dataclass(frozen=True)
class Scores:
    """What the methods are worth on one run.

    Attributes
    ----------
    unexplained : dict of str to dict of float to float
        1 − skill by method and horizon, the mean over origins.
    num_origins : dict of float to int
        By horizon.
    """

    run: str
    num_steps: int
    unexplained: Mapping[str, Mapping[float, float]]
    num_origins: Mapping[float, int]

    def far(self, method: str) -> float:
        """1 − skill, the mean over the horizons 1.5, 2 and 3."""
        return float(np.mean([self.unexplained[method][horizon] for horizon in _FAR]))


def pairs_of(steps: Sequence[int]) -> list[tuple[float, int, int]]:
    """Return every (horizon, row of the origin's last checkpoint, row of the target).

    The target is the checkpoint nearest to the horizon; where the nearest is farther than half the distance
    between the run's checkpoints, there is none.
    """
    observed = np.asarray(steps, np.float64) - steps[0]
    tolerance = 0.5 * float(np.median(np.diff(observed)))
    pairs = []
    for last in range(FEWEST - 1, len(steps) - 1):
        for horizon in HORIZONS:
            away = np.abs(observed - horizon * observed[last])
            row = int(away.argmin())
            if row > last and away[row] <= tolerance:
                pairs.append((horizon, last, row))
    return pairs


def score_methods(run: str, grams: GramMatrices, methods: Sequence[MethodSpec]) -> Scores:
    """Score methods on a run; a method that needs more checkpoints than an origin has stands still there."""
    matrices, steps = grams.stack(), np.asarray(grams.steps, np.float64)
    pairs = pairs_of(grams.steps)
    names = [*(m.short for m in methods), FACTOR, FREE]
    found: dict[str, dict[float, list[float]]] = {name: {h: [] for h in HORIZONS} for name in names}
    for horizon, last, row in pairs:
        seen = matrices[:, : last + 1, : last + 1]
        still = np.zeros(len(steps))
        still[[last, row]] = 1.0, -1.0
        moved = float(np.einsum("t,ntu,u->", still, matrices, still))
        for method in methods:
            errors = np.broadcast_to(still, (len(matrices), len(steps))).copy()
            if last + 1 >= method.min_steps:
                errors[:, : last + 1] = method.coefficients(
                    steps[: last + 1], steps[row], seen, seen.sum(axis=0)
                )
            error = float(np.einsum("nt,ntu,nu->", errors, matrices, errors, optimize=True))
            found[method.short][horizon].append(error / moved)
        factor, free = _hindsight(matrices, steps, last, row)
        found[FACTOR][horizon].append(factor / moved)
        found[FREE][horizon].append(free / moved)
    found[AUTO] = _auto(grams, pairs)
    return Scores(
        run,
        len(steps),
        {m: {h: float(np.mean(values)) for h, values in by.items() if values} for m, by in found.items()},
        {h: sum(horizon == h for horizon, _, _ in pairs) for h in HORIZONS},
    )


def _auto(grams: GramMatrices, pairs: Sequence[tuple[float, int, int]]) -> dict[float, list[float]]:
    """Return the figures of what `ckptlin.backtest.choose` would have taken at each origin, by horizon."""
    scores = backtest(grams).scores
    errors, moves = scores.errors[AUTO].sum(axis=0), scores.moves.sum(axis=0)
    at = {pair: i for i, pair in enumerate(zip(scores.origins - 1, scores.held_out, strict=True))}
    found: dict[float, list[float]] = {horizon: [] for horizon in HORIZONS}
    for horizon, last, row in pairs:
        found[horizon].append(float(errors[at[last, row]] / moves[at[last, row]]))
    return found


def _hindsight(matrices: np.ndarray[Any, Any], steps: np.ndarray[Any, Any], last: int, row: int) -> list[float]:
    """Return the squared errors of combinations that are fitted to the target itself, for each tensor.

    The multiple of wls-anchored's move, and the combination of all increments seen, that come nearest.
    """
    every = np.eye(len(steps))
    line = np.zeros((1, len(steps)))
    line[0, : last + 1] = parse_method("wls-anchored").coefficients(steps[: last + 1], steps[row])
    move, moves = every[row] - every[last], np.diff(every, axis=0)[:last]
    errors = []
    for basis in (line - every[last], moves):
        along = basis @ matrices @ move
        inverse = np.linalg.pinv(basis @ matrices @ basis.T, rcond=1e-10, hermitian=True)
        explained = np.einsum("ni,nij,nj->", along, inverse, along)
        errors.append(float(np.einsum("t,ntu,u->", move, matrices, move) - explained))
    return errors


def ratio(scores: Sequence[Scores], method: str) -> list[float]:
    """Return the method's squared error over two-point's at 1.5 to 3 times the span, run by run."""
    return [s.far(method) / s.far("two-point") for s in scores]


def print_scores(scores: Sequence[Scores]) -> None:
    """Print two tables: 1 − skill by run, horizon and method, then all runs against the aim."""
    names = list(scores[0].unexplained)
    width = max(map(len, names))
    for s in scores:
        counts = " ".join(f"{h:g}x:{n}" for h, n in s.num_origins.items())
        print(f"\n{s.run}, {s.num_steps} checkpoints; origins {counts}")
        print(f"  {'1 - skill':<{width}}" + "".join(f"{f'{h:g}x':>8}" for h in HORIZONS) + "   of two-point's")
        for name in names:
            cells = "".join(f"{s.unexplained[name].get(h, np.nan):8.3f}" for h in HORIZONS)
            print(f"  {name:<{width}}{cells}{s.far(name) / s.far('two-point'):17.2f}")
    print("\nsquared error at 1.5 to 3 times the span, over two-point's: geometric mean over runs, worst run")
    for name in sorted(names, key=lambda name: float(np.mean(np.log(ratio(scores, name))))):
        ratios = ratio(scores, name)
        short = sum(r > AIM for r in ratios)
        verdict = "every run within 2/3" if not short else f"{short} of {len(ratios)} runs above 2/3"
        print(f"  {name:<{width}}{np.exp(np.mean(np.log(ratios))):8.3f}{max(ratios):8.3f}   {verdict}")


def save_scores(path: Path, scores: Sequence[Scores]) -> None:
    """Write all figures as JSON."""
    content: dict[str, Any] = {
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(["ckptlin", "numpy"]),
        "runs": [
            {
                "run": s.run,
                "num_steps": s.num_steps,
                "num_origins": {f"{h:g}": n for h, n in s.num_origins.items()},
                "unexplained": {m: {f"{h:g}": v for h, v in by.items()} for m, by in s.unexplained.items()},
                "unexplained_at_1.5_to_3": {m: s.far(m) for m in s.unexplained},
                "of_two_point": {m: s.far(m) / s.far("two-point") for m in s.unexplained},
            }
            for s in scores
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Score, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs or stores")
    parser.add_argument("--method", action="append", help="one more method; default all and some variants")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    methods = parse_methods([parse_method("two-point"), *(args.method or [*METHODS, *_VARIANTS])])
    scores = []
    for run in args.runs:
        grams = gram(open_source(run), keep=False)
        scores.append(score_methods(Path(run).name, grams, methods))
    print_scores(scores)
    if args.json:
        save_scores(args.json, scores)


if __name__ == "__main__":
    main()
