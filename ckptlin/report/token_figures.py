"""Figures of log-probabilities: the histogram of R², and the tokens that move most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.report.style import BLUE, GREY, VERMILION, bare, entitle, new_figure
from ckptlin.summary import NUM_BINS, R2Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MovingToken", "TokenPopulation", "draw_moving_tokens", "draw_token_histogram"]

_NUM_BARS = 50
_COLUMNS = 4


@dataclass(frozen=True)
class TokenPopulation:
    """Tokens in the histogram.

    Attributes
    ----------
    name : str
    figures, null_figures : R2Figures
    histogram, null_histogram : numpy.ndarray
        ``(1000,) float64``.
    """

    name: str
    figures: R2Figures
    null_figures: R2Figures
    histogram: np.ndarray[Any, Any]
    null_histogram: np.ndarray[Any, Any]


@dataclass(frozen=True)
class MovingToken:
    """A token in the figure of those that move most.

    Attributes
    ----------
    before, text : str
        The end of what stands before it, and itself.
    values : sequence of float
        Log-probability at each step.
    slope, intercept, r2 : float
        Of its line.
    """

    before: str
    text: str
    values: Sequence[float]
    slope: float
    intercept: float
    r2: float


def draw_token_histogram(
    populations: Sequence[TokenPopulation], *, num_tokens: int, title: str, lines: Sequence[str] = ()
) -> "Figure":
    """Draw R² of each population over that of random walks, a panel each; an empty one is said to be so."""
    figure = new_figure(9.6, 4.0)
    panels = figure.subplots(1, len(populations), sharey=True, squeeze=False)[0]
    entitle(figure, title, lines)
    edges = np.linspace(0, 1, _NUM_BARS + 1)
    for axes, population in zip(panels, populations, strict=True):
        count = population.figures.count
        share = 100 * count / num_tokens
        axes.set_title(
            f"{population.name}: {count:,.0f} of {num_tokens:,} tokens ({share:.3g}%)", fontsize=10, loc="left"
        )
        axes.set_xlabel("R²", fontsize=10)
        axes.set_xlim(0, 1)
        bare(axes, grid="y")
        if not count:
            axes.text(0.5, 0.5, "no such token", ha="center", transform=axes.transAxes, color=GREY)
            continue
        label = _legend("run", population.figures)
        axes.stairs(_bars(population.histogram), edges, fill=True, color=BLUE, alpha=0.75, label=label)
        if population.null_figures.count:
            label = _legend("random walks", population.null_figures)
            axes.stairs(_bars(population.null_histogram), edges, color=VERMILION, linewidth=1.6, label=label)
        axes.axvline(0.7, ymax=0.8, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.legend(loc="upper left", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
    panels[0].set_ylabel(f"% of tokens in each bin of {1 / _NUM_BARS:g}", fontsize=10)
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.25)
    return figure


def draw_moving_tokens(
    up: Sequence[MovingToken],
    down: Sequence[MovingToken],
    *,
    steps: Sequence[int],
    title: str,
    lines: Sequence[str] = (),
) -> "Figure":
    """Draw the tokens that rise and fall most with their least-squares lines, at most four of each."""
    rows = [tokens[:_COLUMNS] for tokens in (up, down) if tokens]
    if not rows:
        figure = new_figure(6.4, 2.0)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no token moved", ha="center", color=GREY)
        entitle(figure, title, lines)
        return figure
    figure = new_figure(11.2, 0.8 + 2.5 * len(rows))
    panels = figure.subplots(len(rows), _COLUMNS, squeeze=False, sharex=True)
    entitle(figure, title, lines)
    for row, tokens in zip(panels, rows, strict=True):
        for axes in row[len(tokens) :]:
            axes.set_visible(False)
        for axes, token in zip(row, tokens, strict=False):
            _draw(axes, token, np.asarray(steps, np.float64))
        row[0].set_ylabel("log-probability", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("step", fontsize=10)
    return figure


def _draw(axes: "Axes", token: MovingToken, steps: np.ndarray[Any, Any]) -> None:
    axes.plot(steps, token.intercept + token.slope * steps, color=VERMILION, linewidth=1.8, zorder=1)
    axes.plot(steps, token.values, "o", color=BLUE, markersize=3.5, zorder=2)
    axes.locator_params(axis="x", integer=True, nbins=5)
    bare(axes)
    before = _printable(token.before)[-16:]
    axes.set_title(
        f"…{before} ▸ {_printable(token.text)}\nR² = {token.r2:.2f}", fontsize=9, loc="left", parse_math=False
    )


def _printable(text: str) -> str:
    """Show line ends and spaces that nobody would see."""
    return text.replace("\n", "⏎").replace("\t", "⇥") if text.strip() else repr(text)


def _bars(histogram: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bars: np.ndarray[Any, Any] = histogram.reshape(_NUM_BARS, NUM_BINS // _NUM_BARS).sum(axis=1)
    return bars * (100 / max(float(bars.sum()), 1e-300))


def _legend(what: str, figures: R2Figures) -> str:
    return f"{what}: median {figures.median:.2f}, {figures.above_7:.0%} above 0.7"
