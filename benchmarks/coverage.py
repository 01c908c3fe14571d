"""How often the intervals of the metrics cover the truth, and those of the bootstrap, in simulation.

    python -m benchmarks.coverage --json build/coverage.json
    python -m benchmarks.coverage --full --repeats 2000
    python -m benchmarks.coverage --quick

Problems have success probabilities from a population: Beta distributions of a mean (.1 to .9) and a + b = 0.3
(nearly all or nothing, as on AIME), 1 and 5 (alike), and, since the sampling variance is fitted by a Beta, one
that is none: half the problems are of Beta with a + b = 6 and the others impossible or certain, in the same
mean.  Each is answered n times by a model that has five wrong answers, of unequal appeal, for maj@k.  A cell
is a population, a mean, N problems, n samples and a metric; it is repeated, and the share of repetitions whose
interval covers the truth is its coverage.  Nominal is 95%.  A row is the least, mean and greatest coverage of
its cells, and the number of cells that are off by more than 3 points.  Cells whose truth is not from .1 to .9
are rows of their own.

Rivals over problems: bootstraps over the problems' values, percentile, studentised (bootstrap-t) and BCa.  Over
samples: the percentile bootstrap of each problem's samples.  For paired differences percentile and Student's t.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.report import machine, versions
from ckptlin.evaluate.metrics.intervals import interval_over_problems, interval_over_samples, student_quantile
from ckptlin.evaluate.metrics.majority import ballot, majority_curve
from ckptlin.evaluate.metrics.paired import interval_of_difference
from ckptlin.evaluate.metrics.pass_at_k import pass_at_k
from ckptlin.evaluate.metrics.sampling_variance import fit_beta, majority_variance, pass_at_k_variance

__all__ = ["Cell", "cover_majority", "cover_paired", "cover_pass_at_k", "draw_population"]

Array = np.ndarray[Any, Any]

ACCURACIES = (0.1, 0.3, 0.5, 0.7, 0.9)
POPULATIONS = ("a+b=0.3", "a+b=1", "a+b=5", "mixture")
NOMINAL, TOLERANCE = 0.95, 0.03
_KS = {1: (1,), 4: (1, 2, 4), 16: (1, 4, 16), 64: (1, 8, 64)}
_APPEAL = (0.4, 0.25, 0.15, 0.12, 0.08)
_NUM_DRAWS = 1000  # of each bootstrap
_NUM_REDRAWN = 100  # of each problem's samples
_NUM_TRUTH = 400_000  # draws for a truth that has no closed form here
_OURS = "ours"


@dataclass(frozen=True)
class Cell:
    """What was covered how often.

    Attributes
    ----------
    kind : str
        ``problems``, ``samples`` or ``paired``.
    metric : str
    truth : float
        The mean over repetitions, where it depends on the problems drawn.
    coverage, width : dict of str to float
        By method.
    """

    kind: str
    metric: str
    population: str
    accuracy: float
    num_problems: int
    num_samples: int
    truth: float
    coverage: dict[str, float]
    width: dict[str, float]


def draw_population(name: str, accuracy: float, size: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Return success probabilities."""
    if name != "mixture":
        total = float(name.removeprefix("a+b="))
        return generator.beta(accuracy * total, (1.0 - accuracy) * total, size)
    between = generator.beta(accuracy * 6.0, (1.0 - accuracy) * 6.0, size)
    extreme = (generator.random(size) < accuracy).astype(float)
    return np.where(generator.random(size) < 0.5, between, extreme)


def cover_pass_at_k(
    population: str,
    accuracy: float,
    num_problems: int,
    num_samples: int,
    *,
    repeats: int,
    generator: np.random.Generator,
) -> Iterator[Cell]:
    """Cover pass@k, of which pass@1 is avg@n, both ways."""
    p = draw_population(population, accuracy, (repeats, num_problems), generator)
    correct = generator.binomial(num_samples, p)
    many = draw_population(population, accuracy, (_NUM_TRUTH,), generator)
    for k in _KS[num_samples]:
        values = pass_at_k(correct, num_samples, k)
        truth = accuracy if k == 1 else float((1.0 - (1.0 - many) ** k).mean())
        ours = [interval_over_problems(row, samples_per_problem=num_samples) for row in values]
        ends = {_OURS: np.array([[i.low, i.high] for i in ours]), **_bootstraps(values, generator)}
        where = (f"pass@{k}", population, accuracy, num_problems, num_samples)
        yield _cell("problems", *where, truth=np.full(repeats, truth), ends=ends)
        truths = (1.0 - (1.0 - p) ** k).mean(axis=1)
        found = []
        for counts, row in zip(correct, values, strict=True):
            variance = pass_at_k_variance(counts, np.full(num_problems, num_samples), k).sum() / num_problems**2
            groups = num_problems * num_samples / k
            found.append(
                interval_over_samples(
                    float(row.mean()), float(variance), num_problems=num_problems, num_groups=groups
                )
            )
        table = pass_at_k(np.arange(num_samples + 1), num_samples, k)
        share = correct / num_samples
        redrawn = [table[generator.binomial(num_samples, share)].mean(axis=1) for _ in range(_NUM_REDRAWN)]
        ends = {
            _OURS: np.array([[i.low, i.high] for i in found]),
            "percentile": np.quantile(redrawn, [0.025, 0.975], axis=0).T,
        }
        yield _cell("samples", *where, truth=truths, ends=ends)


def cover_majority(
    population: str,
    accuracy: float,
    num_problems: int,
    num_samples: int,
    *,
    repeats: int,
    generator: np.random.Generator,
    pool: int = 1000,
) -> Iterator[Cell]:
    """Cover maj@k, k = n and half of it; problems are drawn from a pool, which is the population."""
    p = draw_population(population, accuracy, (pool,), generator)
    chances = np.column_stack([p, (1.0 - p)[:, None] * np.array(_APPEAL)])
    counts = generator.multinomial(num_samples, chances)
    votes = [np.repeat(np.arange(len(row)), row) for row in counts]
    ballots = [ballot(row, row == 0) for row in votes]
    chosen = generator.integers(0, pool, (repeats, num_problems))
    for k in (num_samples // 2, num_samples):
        values = np.array([majority_curve(of_problem)[k - 1] for of_problem in ballots])
        where = (f"maj@{k}", population, accuracy, num_problems, num_samples)
        ours = [interval_over_problems(values[row], samples_per_problem=num_samples) for row in chosen]
        ends = {_OURS: np.array([[i.low, i.high] for i in ours]), **_bootstraps(values[chosen], generator)}
        yield _cell("problems", *where, truth=np.full(repeats, values.mean()), ends=ends)
        redrawn = generator.multinomial(k, np.broadcast_to(chances, (2000, *chances.shape)))
        top = redrawn.max(axis=2)
        wins = (redrawn[..., 0] == top) / (redrawn == top[..., None]).sum(axis=2)
        truths = wins.mean(axis=0)
        found = []
        for row in chosen:
            drawn = [ballots[i] for i in row]
            beta = fit_beta(counts[row, 0], np.full(num_problems, num_samples))
            variance = majority_variance(drawn, k, beta=beta, generator=generator).sum() / num_problems**2
            groups = num_problems * num_samples / k
            found.append(
                interval_over_samples(
                    float(values[row].mean()), float(variance), num_problems=num_problems, num_groups=groups
                )
            )
        yield _cell(
            "samples",
            *where,
            truth=truths[chosen].mean(axis=1),
            ends={_OURS: np.array([[i.low, i.high] for i in found])},
        )


def cover_paired(
    population: str,
    accuracy: float,
    num_problems: int,
    num_samples: int,
    *,
    repeats: int,
    generator: np.random.Generator,
) -> Iterator[Cell]:
    """Cover the difference of two models; the second's log-odds are shifted, with noise on each problem."""
    for shift, noise in ((0.0, 0.0), (0.0, 0.7), (0.3, 0.7), (1.0, 0.3)):

        def draw(size: tuple[int, ...], shift: float = shift, noise: float = noise) -> tuple[Array, Array]:
            first = draw_population(population, accuracy, size, generator).clip(1e-9, 1.0 - 1e-9)
            odds = np.log(first / (1.0 - first)) + shift + noise * generator.standard_normal(size)
            return first, 1.0 / (1.0 + np.exp(-odds))

        first, second = draw((_NUM_TRUTH,))
        truth = float((second - first).mean())
        first, second = draw((repeats, num_problems))
        values = (
            generator.binomial(num_samples, second) - generator.binomial(num_samples, first)
        ) / num_samples
        ours = [interval_of_difference(row, num_samples=num_samples) for row in values]
        mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / num_problems**0.5
        half = student_quantile(NOMINAL, num_problems - 1) * error
        ends = {
            _OURS: np.array([[i.low, i.high] for i in ours]),
            "percentile": _bootstraps(values, generator)["percentile"],
            "student": np.column_stack([mean - half, mean + half]),
        }
        metric = f"difference, log-odds {shift:+.1f} ± {noise}"
        yield _cell(
            "paired",
            metric,
            population,
            accuracy,
            num_problems,
            num_samples,
            truth=np.full(repeats, truth),
            ends=ends,
        )


def _cell(
    kind: str,
    metric: str,
    population: str,
    accuracy: float,
    num_problems: int,
    num_samples: int,
    *,
    truth: Array,
    ends: dict[str, Array],
) -> Cell:
    covered = {
        name: float(((e[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= e[:, 1])).mean())
        for name, e in ends.items()
    }
    width = {name: float((e[:, 1] - e[:, 0]).mean()) for name, e in ends.items()}
    return Cell(
        kind, metric, population, accuracy, num_problems, num_samples, float(truth.mean()), covered, width
    )


def _bootstraps(values: Array, generator: np.random.Generator) -> dict[str, Array]:
    """Return the ends of three bootstraps, ``(repeats, 2)`` each, for values ``(repeats, num_problems)``."""
    num = values.shape[1]
    weights = generator.multinomial(num, np.full(num, 1.0 / num), _NUM_DRAWS) / num
    mean, spread = values.mean(axis=1), values.std(axis=1)
    means = values @ weights.T
    spreads = np.sqrt(np.maximum(values**2 @ weights.T - means**2, 0.0))
    tails = ((1.0 - NOMINAL) / 2.0, (1.0 + NOMINAL) / 2.0)
    percentile = np.quantile(means, tails, axis=1).T
    away = means - mean[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = np.where(spreads > 1e-12, away / spreads, np.sign(away) * 1e6)
    low, high = np.quantile(studentised, tails, axis=1)
    bootstrap_t = np.column_stack([mean - high * spread, mean - low * spread])
    normal = NormalDist()
    below = ((away < 0).mean(axis=1) + (away <= 0).mean(axis=1)) / 2.0
    bias = np.array([normal.inv_cdf(share) for share in below.clip(1e-3, 1.0 - 1e-3)])
    centred = values - mean[:, None]
    skew = (centred**3).sum(axis=1) / (6.0 * np.maximum((centred**2).sum(axis=1), 1e-12) ** 1.5)
    means.sort(axis=1)
    bca = []
    for tail in tails:
        z = bias + normal.inv_cdf(tail)
        shares = np.array([normal.cdf(x) for x in bias + z / (1.0 - skew * z)])
        rows = (shares * _NUM_DRAWS).astype(int).clip(0, _NUM_DRAWS - 1)
        bca.append(means[np.arange(len(means)), rows])
    return {"percentile": percentile, "bootstrap-t": bootstrap_t, "BCa": np.column_stack(bca)}


def in_range(cell: Cell) -> bool:
    """Whether the intervals are meant to hold there."""
    return cell.kind == "paired" or 0.0999 <= cell.truth <= 0.9001


def print_table(cells: Sequence[Cell], repeats: int) -> None:
    """Print a row for each kind, metric, N and n, in Markdown."""
    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        name, _, k = cell.metric.partition("@")
        metric = "difference" if cell.kind == "paired" else f"{name}@k"
        if k == "1":
            metric = "avg@n"
        elif k == str(cell.num_samples):
            metric = f"{name}@n"
        if in_range(cell):
            groups[cell.kind, metric, cell.num_problems, cell.num_samples].append(cell)
        else:
            groups[cell.kind, "truth outside .1 to .9", cell.num_problems, 0].append(cell)
    kind = ""
    for key in sorted(groups, key=lambda key: (key[0], "outside" in key[1], key[1:])):
        of_row = groups[key]
        methods = list(of_row[0].coverage)
        if len(of_row[0].coverage) < max(
            len(c.coverage) for k, g in groups.items() if k[0] == key[0] for c in g
        ):
            methods = [m for m in methods if all(m in cell.coverage for cell in of_row)]
        if key[0] != kind:
            kind = key[0]
            heads = list(max((c for c in cells if c.kind == kind), key=lambda c: len(c.coverage)).coverage)
            print(
                f"\nover {kind}" if kind != "paired" else "\npaired differences", f"({repeats} repetitions)\n"
            )
            print("| metric | N | n | cells |", *(f" {m}: least, mean, most; off |" for m in heads))
            print("|---|---|---|---|" + "---|" * len(heads))
        entries = []
        for method in heads:
            if method not in methods:
                entries.append("")
                continue
            c = np.array([cell.coverage[method] for cell in of_row])
            off = int((np.abs(c - NOMINAL) > TOLERANCE + 1e-9).sum())
            entries.append(f"{c.min():.3f} {c.mean():.3f} {c.max():.3f}; {off}")
        print(f"| {key[1]} | {key[2]} | {key[3] or 'all'} | {len(of_row)} | " + " | ".join(entries) + " |")


def print_worst(cells: Sequence[Cell]) -> None:
    """Print the cells in range where ours is too low by more than the tolerance."""
    low = [c for c in cells if in_range(c) and c.coverage[_OURS] < NOMINAL - TOLERANCE]
    print(f"\nours below {NOMINAL - TOLERANCE:.2f}: {len(low)} of {sum(map(in_range, cells))} cells in range")
    for c in sorted(low, key=lambda c: c.coverage[_OURS]):
        print(
            f"  {c.coverage[_OURS]:.3f} over {c.kind}, {c.metric}, {c.population}, mean {c.accuracy}, "
            f"N {c.num_problems}, n {c.num_samples}, truth {c.truth:.3f}"
        )


def main() -> None:
    """Simulate, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 problems, fewer cells and repetitions")
    parser.add_argument(
        "--full", action="store_true", help="more accuracies, up to 500 problems; many times as long"
    )
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    repeats = min(args.repeats, 200) if args.quick else args.repeats
    generator = np.random.default_rng(args.seed)
    cells: list[Cell] = []

    def run(
        cover: Callable[..., Iterator[Cell]], sizes: Sequence[tuple[int, int]], accuracies: Sequence[float]
    ) -> None:
        for num_problems, num_samples in sizes:
            for population in POPULATIONS if num_samples > 1 or cover is cover_paired else POPULATIONS[:3]:
                for accuracy in accuracies:
                    cells.extend(
                        cover(
                            population,
                            accuracy,
                            num_problems,
                            num_samples,
                            repeats=repeats,
                            generator=generator,
                        )
                    )
            print(f"{cover.__name__}: {num_problems} problems, {num_samples} samples", file=sys.stderr)

    if args.quick:
        run(cover_pass_at_k, [(30, 1), (30, 16)], (0.1, 0.5))
        run(cover_majority, [(30, 4)], (0.5,))
        run(cover_paired, [(30, 16)], (0.1, 0.5))
    elif args.full:
        run(cover_pass_at_k, [(num_problems, n) for num_problems in (30, 100, 500) for n in _KS], ACCURACIES)
        run(cover_majority, [(num_problems, n) for num_problems in (30, 100) for n in (4, 16)], ACCURACIES)
        run(cover_paired, [(num_problems, n) for num_problems in (30, 100) for n in _KS], ACCURACIES)
    else:
        run(cover_pass_at_k, [*((30, n) for n in _KS), (100, 16)], ACCURACIES[::2])
        run(cover_paired, [(30, 1), (30, 16), (30, 64), (100, 16)], ACCURACIES[::2])
        run(cover_majority, [(30, 16)], ACCURACIES[2:3])
    print_table(cells, repeats)
    print_worst(cells)
    if args.json:
        content = {
            "command": sys.orig_argv,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(["ckptlin", "numpy"]),
            "repeats": repeats,
            "cells": [vars(cell) for cell in cells],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
