"""How linear hidden states are in the step: the weights' regression, on the coordinates of their sketches.

The null is a random walk for each layer, of the size of the coordinates' own steps (`ckptlin.null`).  All
states of a run move by the same updates of the weights, so that coordinates are far from independent: one run's
figures scatter around the null much wider than their number suggests.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptlin.kernels.regression import Abscissa
from ckptlin.null import simulate_null
from ckptlin.outputs.activation_store import ActivationStore
from ckptlin.outputs.step_fit import FLOAT32, flat_row, r2_histogram, regress
from ckptlin.summary import NUM_BINS, R2Figures

__all__ = ["ActivationFit", "LayerFit", "fit_activations"]

_SAMPLE, _NUM_PATHS = 2048, 4096


@dataclass(frozen=True)
class LayerFit:
    """R² of a layer's coordinates.

    Attributes
    ----------
    name : str
    num_states, num_coordinates : int
        States, and coordinates of all of them together.
    unchanged : int
        Coordinates that are the same at every step; they have no R².
    num_moved_states : int
        States of which any coordinate moved.
    mean : float or None
        Over these of the mean R² of their coordinates that moved.
    figures, null : R2Figures
        Of all coordinates that moved, and of random walks.
    change : float or None
        ‖last − first‖ over ‖first‖, over all states together; None if the first are 0.
    """

    name: str
    num_states: int
    num_coordinates: int
    unchanged: int
    num_moved_states: int
    mean: float | None
    figures: R2Figures
    null: R2Figures
    change: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        names = ("name", "num_states", "num_coordinates", "unchanged", "num_moved_states", "mean", "change")
        return {name: getattr(self, name) for name in names} | {
            "moved": self.figures.to_dict(),
            "null": self.null.to_dict(),
        }

    def to_row(self) -> dict[str, Any]:
        """Return it as one flat row, for a table."""
        return flat_row(self.to_dict())


@dataclass(frozen=True)
class ActivationFit:
    """The linearity of a store's hidden states.

    Attributes
    ----------
    source : str
    steps : tuple of int
    dim, hidden : int
        Coordinates of a state that are kept, and that it has.
    num_distinct, num_tokens : int
        Tokens behind distinct texts, of which the states were chosen, and all tokens of the responses.
    layers : tuple of LayerFit
    """

    source: str
    steps: tuple[int, ...]
    dim: int
    hidden: int
    num_distinct: int
    num_tokens: int
    layers: tuple[LayerFit, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        names = ("source", "dim", "hidden", "num_distinct", "num_tokens")
        return {name: getattr(self, name) for name in names} | {
            "steps": list(self.steps),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def fit_activations(store: ActivationStore, *, steps: str | None = None, seed: int = 0) -> ActivationFit:
    """Fit every coordinate of every layer by a straight line in the step.

    Parameters
    ----------
    store : ActivationStore
    steps : str, optional
        Window of steps, see `ckptlin.selection.select_rows`; default all.
    seed : int
        Of the random walks.

    Returns
    -------
    ActivationFit
        A MiB a step is in memory meanwhile.

    Raises
    ------
    InputError
        If there are fewer than two steps.
    SelectionError
        If the window holds none, or a step that is not there.
    """
    chosen = store.steps_to_fit(steps)
    return ActivationFit(
        source=str(store.path),
        steps=chosen,
        dim=store.dim,
        hidden=int(store.record["sketch"]["hidden"]),
        num_distinct=int(store.record["num_distinct"]),
        num_tokens=int(store.record["num_tokens"]),
        layers=tuple(_fit_layer(store, layer, chosen, seed) for layer in range(len(store.layers))),
    )


def _fit_layer(store: ActivationStore, layer: int, steps: tuple[int, ...], seed: int) -> LayerFit:
    abscissa = Abscissa.of(steps)
    histogram = np.zeros(NUM_BINS)
    above = np.zeros(2)
    total = of_states = moved_squares = first_squares = 0.0
    num_moved_states = 0
    samples = []
    blocks = list(store.blocks())
    for lo, hi in blocks:
        values = store.read_states(layer, steps, lo, hi).reshape(len(steps), -1)
        fit = regress(values, abscissa, ("r2",))
        assert fit.r2 is not None  # noqa: S101 (it was asked for)
        r2 = fit.r2.astype(np.float64)
        moved = ~np.isnan(r2)
        known = np.where(moved, r2, 0.0)
        histogram += r2_histogram(known[moved])
        above += [(known > limit).sum() for limit in (0.7, 0.9)]
        total += float(known.sum())
        counts = moved.reshape(-1, store.dim).sum(axis=1)
        sums = known.reshape(-1, store.dim).sum(axis=1)
        of_states += float((sums[counts > 0] / counts[counts > 0]).sum())
        num_moved_states += int((counts > 0).sum())
        first, last = values[0].astype(np.float64), values[-1].astype(np.float64)
        moved_squares += float(((last - first) ** 2).sum())
        first_squares += float((first**2).sum())
        # At even distances, which the order of the coordinates makes no worse than random ones.
        share = min(values.shape[1], -(-_SAMPLE // len(blocks)))
        samples.append(values[:, np.linspace(0, values.shape[1] - 1, share).astype(np.int64)])
    num_coordinates = store.num_states * store.dim
    return LayerFit(
        name=store.layers[layer],
        num_states=store.num_states,
        num_coordinates=num_coordinates,
        unchanged=num_coordinates - int(histogram.sum()),
        num_moved_states=num_moved_states,
        mean=of_states / num_moved_states if num_moved_states else None,
        figures=R2Figures.of(histogram, above[0], above[1], total),
        null=_null(np.concatenate(samples, axis=1), steps, seed=(1 << 16) * abs(seed) + layer),
        change=float(np.sqrt(moved_squares / first_squares)) if first_squares else None,
    )


def _null(sample: np.ndarray[Any, Any], steps: tuple[int, ...], *, seed: int) -> R2Figures:
    null = simulate_null(sample.astype(np.float64), steps, FLOAT32, num_paths=_NUM_PATHS, seed=seed)
    r2 = null.r2[~np.isnan(null.r2)]
    return R2Figures.of(r2_histogram(r2), float((r2 > 0.7).sum()), float((r2 > 0.9).sum()), float(r2.sum()))
