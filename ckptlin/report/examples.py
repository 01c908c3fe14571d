"""Example trajectories: a few parameters of a store, chosen to show what R² looks like.

Which parameters are shown follows from the fit alone, so that the same store gives the same examples, and of
the weights only one block a example is read.  Drawing them is left to `ckptlin.report.figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.naming import module_kind
from ckptlin.selection import row_groups
from ckptlin.store.store import TrajectoryStore
from ckptlin.summary import NUM_BINS, FitSummary

__all__ = ["EXAMPLE_QUANTILES", "Example", "pick_examples"]

EXAMPLE_QUANTILES = (0.1, 0.4, 0.7, 0.95)
# Parameters of a block that are looked at; evenly spread over it.
_NUM_CANDIDATES = 4096
# Of the candidates whose R² is nearest to the wanted one, the one that moved most is shown.
_NUM_NEAREST = 32


@dataclass(frozen=True)
class Example:
    """The trajectory of one parameter and its fitted line.

    Attributes
    ----------
    tensor : str
    index : tuple of int
        Where the parameter stands in its tensor; empty for a tensor without dimensions.
    dtype : TensorDType
    steps : tuple of int
    values : numpy.ndarray
        ``(num_steps,) float64``, the weights as stored, widened exactly.
    r2, slope, intercept : float
        Of the least-squares line ``intercept + slope · step``, in float64.
    """

    tensor: str
    index: tuple[int, ...]
    dtype: TensorDType = field(repr=False)
    steps: tuple[int, ...] = field(repr=False)
    values: np.ndarray[Any, Any] = field(repr=False)
    r2: float
    slope: float
    intercept: float

    @property
    def line(self) -> np.ndarray[Any, Any]:
        """Value of the line at each step, ``(num_steps,) float64``."""
        line: np.ndarray[Any, Any] = self.intercept + self.slope * np.asarray(self.steps, np.float64)
        return line


def pick_examples(
    store: TrajectoryStore, summary: FitSummary, *, quantiles: Sequence[float] = EXAMPLE_QUANTILES
) -> list[Example]:
    """Pick a parameter near each quantile of R² among all that moved, of different module kinds if there are.

    Parameters
    ----------
    store : TrajectoryStore
    summary : FitSummary
        Of a fit of this store, whose steps and tensors count.
    quantiles : sequence of float

    Returns
    -------
    list of Example
        In the order of the quantiles.  Fewer where fewer parameters moved; empty if none did.

    Raises
    ------
    SelectionError
        If the store has not all the steps of the fit.
    CorruptChunkError
    """
    rows = [store.row_of(step) for step in summary.steps]
    examples: list[Example] = []
    used: set[str] = set()
    for target in _targets(summary, quantiles):
        for tensor in _candidates(summary, target, used):
            taken = {example.index for example in examples if example.tensor == tensor}
            example = _nearest(store, tensor, rows, target, taken)
            if example is not None:
                examples.append(example)
                used.add(tensor)
                break
    return examples


def _targets(summary: FitSummary, quantiles: Sequence[float]) -> list[float]:
    moved = summary.histogram()[0][0]
    if not moved.sum():
        return []
    cumulative = np.cumsum(moved) / moved.sum()
    return [float((np.searchsorted(cumulative, q) + 0.5) / NUM_BINS) for q in quantiles]


def _candidates(summary: FitSummary, target: float, used: set[str]) -> list[str]:
    """Order tensors by how well they would show an R²: new kinds first, then those that have it often."""
    used_kinds = {module_kind(name) for name in used}
    lo, hi = int(max(target - 0.03, 0) * NUM_BINS), int((target + 0.03) * NUM_BINS) + 1

    def rank(item: tuple[int, str]) -> tuple[bool, bool, bool, float, int]:
        position, name = item
        near = float(summary.tallies[position].histogram[0, lo:hi].sum())
        return near == 0, module_kind(name) in used_kinds, name in used, -near, position

    moved = [(i, name) for i, name in enumerate(summary.names) if summary.tallies[i].histogram[0].sum()]
    return [name for _, name in sorted(moved, key=rank)]


def _nearest(
    store: TrajectoryStore, tensor: str, rows: Sequence[int], target: float, taken: set[tuple[int, ...]]
) -> Example | None:
    """Find the parameter of a tensor whose R² is nearest, in the first block where any moved."""
    spec = store.tensors[tensor]
    blocks = store.blocks(tensor)
    middle = len(blocks) // 2
    for block in (*blocks[middle:], *blocks[:middle]):
        columns = np.unique(np.linspace(0, block.num_params - 1, _NUM_CANDIDATES).astype(np.int64))
        parts = [store.read_block(block, group)[:, columns] for group in row_groups(store, rows)]
        values = np.concatenate(parts).view(spec.dtype.numpy).astype(np.float64)
        steps = np.array([store.steps[row] for row in rows], np.float64)
        r2, slope, intercept = _regress(steps, values)
        distance = np.abs(r2 - target)
        for position, column in enumerate(columns):
            if _index(block.start + int(column), spec.shape) in taken:
                distance[position] = np.nan
        if np.isnan(distance).all():
            continue
        # Within the nearest few the differences in R² cannot be seen, those in movement can.
        order = np.argsort(distance, kind="stable")[:_NUM_NEAREST]
        order = order[distance[order] <= distance[order[0]] + 0.01]
        chosen = int(order[np.argmax(np.ptp(values[:, order], axis=0))])
        return Example(
            tensor=tensor,
            index=_index(block.start + int(columns[chosen]), spec.shape),
            dtype=spec.dtype,
            steps=tuple(store.steps[row] for row in rows),
            values=values[:, chosen],
            r2=float(r2[chosen]),
            slope=float(slope[chosen]),
            intercept=float(intercept[chosen]),
        )
    return None


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()


def _regress(
    steps: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Fit lines to columns in float64; R² is NaN where a column is constant."""
    centred = steps - steps.mean()
    moved = values - values[0]
    deviations = moved - moved.mean(axis=0)
    slope = centred @ deviations / (centred @ centred)
    intercept = values[0] + moved.mean(axis=0) - slope * steps.mean()
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        r2 = (centred @ deviations) ** 2 / ((centred @ centred) * (deviations**2).sum(axis=0))
    r2[np.ptp(values, axis=0) == 0] = np.nan
    return np.minimum(r2, 1.0), slope, intercept
