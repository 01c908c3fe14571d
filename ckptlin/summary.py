"""Figures of a fit, per tensor and merged over layers, module kinds and the whole model.

What is kept of each tensor are counts, sums and histograms, which merge by addition; medians and quartiles come
out of the histogram of R², exact to its bins of 1/1000.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ckptlin.naming import layer_index, module_kind
from ckptlin.populations import POPULATIONS

__all__ = ["FitSummary", "GroupSummary", "R2Figures", "Tally"]

# Indices into counts and sums; ckptlin.kernels.regression fills them in this order (a test holds that).
COUNTS = (
    "params",
    "unchanged",
    "undefined",
    "moved_above_7",
    "moved_above_9",
    "paper",
    "paper_above_7",
    "paper_above_9",
)
SUMS = ("r2_moved", "r2_paper", "update", "first", "variation", "residual", "rounding")
NUM_BINS = 1000


@dataclass
class Tally:
    """Additive figures of some parameters.

    Attributes
    ----------
    counts : numpy.ndarray
        ``(8,) float64``, by `COUNTS`.
    sums : numpy.ndarray
        ``(7,) float64``, by `SUMS`.
    histogram : numpy.ndarray
        ``(2, 1000) float64``: R² by population and bin.
    null_counts, null_histogram : numpy.ndarray
        The same of random walks, each weighted so that all walks of a tensor stand for all its parameters.
    """

    counts: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    histogram: np.ndarray[Any, Any]
    null_counts: np.ndarray[Any, Any]
    null_histogram: np.ndarray[Any, Any]

    NUM_BYTES: ClassVar[int] = 8 * (2 * len(COUNTS) + len(SUMS) + 4 * NUM_BINS)

    @classmethod
    def zero(cls) -> "Tally":
        """Return the tally of no parameters."""
        return cls(
            np.zeros(len(COUNTS)),
            np.zeros(len(SUMS)),
            np.zeros((2, NUM_BINS)),
            np.zeros(len(COUNTS)),
            np.zeros((2, NUM_BINS)),
        )

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        self.counts += other.counts
        self.sums += other.sums
        self.histogram += other.histogram
        self.null_counts += other.null_counts
        self.null_histogram += other.null_histogram


@dataclass(frozen=True, slots=True)
class R2Figures:
    """R² of one population; everything is None where the population is empty.

    Attributes
    ----------
    count : float
        Parameters with an R².
    mean, q25, median, q75 : float or None
    above_7, above_9 : float or None
        Shares with R² above 0.7 and 0.9.
    """

    count: float
    mean: float | None
    q25: float | None
    median: float | None
    q75: float | None
    above_7: float | None
    above_9: float | None

    @classmethod
    def of(
        cls, histogram: np.ndarray[Any, Any], above_7: float, above_9: float, total: float | None
    ) -> "R2Figures":
        """Take the figures out of a histogram; ``total`` is the sum of R², None to take it from the bins."""
        count = float(histogram.sum())
        if count == 0:
            return cls(0.0, None, None, None, None, None, None)
        if total is None:
            total = float(histogram @ ((np.arange(NUM_BINS) + 0.5) / NUM_BINS))
        q25, median, q75 = (_quantile(histogram, q) for q in (0.25, 0.5, 0.75))
        return cls(count, total / count, q25, median, q75, above_7 / count, above_9 / count)

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


def _quantile(histogram: np.ndarray[Any, Any], q: float) -> float:
    cumulative = np.cumsum(histogram)
    target = q * cumulative[-1]
    position = int(np.searchsorted(cumulative, target))
    before = cumulative[position - 1] if position else 0.0
    return float((position + (target - before) / histogram[position]) / NUM_BINS)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """The figures of a group of tensors.

    Attributes
    ----------
    name : str
    num_tensors, num_params : int
    share_unchanged : float
        Share of parameters whose bits are the same at every step.
    moved, paper : R2Figures
        By population, see `ckptlin.populations`.
    null_moved, null_paper : R2Figures
        What random walks over the same steps would show.
    update_norm, relative_update : float
        ‖w_last − w_first‖, and the same over ‖w_first‖ (None if that is 0).
    variance_explained : float or None
        1 − squared residuals / squared deviations, over all that moved: R² weighted by movement.
    rounding_share : float or None
        Share of the residual variance that rounding to the element type alone explains (ulp²/12), at most 1.
    """

    name: str
    num_tensors: int
    num_params: int
    share_unchanged: float
    moved: R2Figures
    paper: R2Figures
    null_moved: R2Figures
    null_paper: R2Figures
    update_norm: float
    relative_update: float | None
    variance_explained: float | None
    rounding_share: float | None

    @classmethod
    def of(cls, name: str, num_tensors: int, tally: Tally) -> "GroupSummary":
        """Take the figures out of a tally."""
        count = dict(zip(COUNTS, tally.counts, strict=True))
        total = dict(zip(SUMS, tally.sums, strict=True))
        null = dict(zip(COUNTS, tally.null_counts, strict=True))
        figures = {}
        for row, population in enumerate(POPULATIONS):
            figures[population] = R2Figures.of(
                tally.histogram[row],
                count[f"{population}_above_7"],
                count[f"{population}_above_9"],
                total[f"r2_{population}"],
            )
            figures[f"null_{population}"] = R2Figures.of(
                tally.null_histogram[row], null[f"{population}_above_7"], null[f"{population}_above_9"], None
            )
        relative_square = _ratio(total["update"], total["first"])
        unexplained = _ratio(total["residual"], total["variation"])
        rounding = _ratio(total["rounding"], total["residual"])
        return cls(
            name=name,
            num_tensors=num_tensors,
            num_params=int(count["params"]),
            share_unchanged=float(count["unchanged"] / count["params"]),
            **figures,
            update_norm=float(np.sqrt(total["update"])),
            relative_update=relative_square**0.5 if relative_square is not None else None,
            variance_explained=1 - unexplained if unexplained is not None else None,
            rounding_share=min(1.0, rounding) if rounding is not None else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {
            name: value.to_dict() if isinstance(value := getattr(self, name), R2Figures) else value
            for name in self.__slots__
        }

    def to_row(self) -> dict[str, Any]:
        """Return the figures as one flat row, for a table."""
        row: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if isinstance(value, dict):
                row |= {f"{name}_{key}": item for key, item in value.items()}
            else:
                row[name] = value
        return row


@dataclass(frozen=True)
class FitSummary:
    """The figures of a fit.

    Attributes
    ----------
    steps : tuple of int
    names : tuple of str
        The fitted tensors.
    tallies : tuple of Tally
        Of each of them.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    tallies: tuple[Tally, ...]

    def model(self) -> GroupSummary:
        """Merge all tensors."""
        return self._merge("model", range(len(self.names)))

    def tensors(self) -> list[GroupSummary]:
        """Return the figures of each tensor, in file order."""
        return [self._merge(name, [i]) for i, name in enumerate(self.names)]

    def layers(self) -> list[GroupSummary]:
        """Merge the tensors of each layer, ascending; those outside the layers are left to `kinds`."""
        groups = self._groups(lambda name: layer_index(name))
        return [self._merge(f"layer {k}", groups[k]) for k in sorted(k for k in groups if k is not None)]

    def kinds(self) -> list[GroupSummary]:
        """Merge the tensors of each module kind, in file order."""
        groups = self._groups(module_kind)
        return [self._merge(kind, members) for kind, members in groups.items()]

    def grid(self) -> tuple[list[int], list[str], np.ndarray[Any, Any]]:
        """Return layers, module kinds inside layers, and the median R² of each pair (NaN: there is none)."""
        cells: dict[tuple[int, str], list[int]] = {}
        for i, name in enumerate(self.names):
            layer = layer_index(name)
            if layer is not None:
                cells.setdefault((layer, module_kind(name)), []).append(i)
        layers = sorted({layer for layer, _ in cells})
        kinds = list(dict.fromkeys(kind for _, kind in cells))
        medians = np.full((len(layers), len(kinds)), np.nan)
        for (layer, kind), members in cells.items():
            median = self._merge(kind, members).moved.median
            if median is not None:
                medians[layers.index(layer), kinds.index(kind)] = median
        return layers, kinds, medians

    def histogram(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the model's histograms of R² and of the null, each ``(2, 1000) float64``."""
        tally = self._tally(range(len(self.names)))
        return tally.histogram, tally.null_histogram

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data."""
        return {
            "steps": list(self.steps),
            "model": self.model().to_dict(),
            "layers": [g.to_dict() for g in self.layers()],
            "kinds": [g.to_dict() for g in self.kinds()],
            "tensors": [g.to_dict() for g in self.tensors()],
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one flat row a group, with its ``level``: model, layer, kind or tensor."""
        levels: list[tuple[str, Sequence[GroupSummary]]] = [
            ("model", [self.model()]),
            ("layer", self.layers()),
            ("kind", self.kinds()),
            ("tensor", self.tensors()),
        ]
        return [{"level": level, **group.to_row()} for level, groups in levels for group in groups]

    def _groups(self, key: Callable[[str], Any]) -> dict[Any, list[int]]:
        groups: dict[Any, list[int]] = {}
        for i, name in enumerate(self.names):
            groups.setdefault(key(name), []).append(i)
        return groups

    def _tally(self, members: Iterable[int]) -> Tally:
        tally = Tally.zero()
        for i in members:
            tally.add(self.tallies[i])
        return tally

    def _merge(self, name: str, members: Sequence[int]) -> GroupSummary:
        return GroupSummary.of(name, len(members), self._tally(members))
