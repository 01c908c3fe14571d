"""The demo's own figure: what the extrapolations are worth."""

from typing import TYPE_CHECKING

from ckptlin.demo.compare import Comparison
from ckptlin.report.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    bare,
    entitle,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison"]

_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "sD^vP"


def draw_comparison(comparison: Comparison, *, name: str = "") -> "Figure":
    """Draw the held-out loss along the run with the predicted one, and the distance to the trained checkpoint.

    Parameters
    ----------
    comparison : Comparison
    name : str
        What was compared, for the title.
    """
    figure = new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1], gridspec_kw={"wspace": 0.06})
    seen = f"extrapolated from steps up to {comparison.last_seen} to step {comparison.target}"
    entitle(figure, "What the extrapolations are worth", [" · ".join(part for part in (name, seen) if part)])
    _draw_losses(left, comparison)
    _draw_distances(right, comparison)
    return figure


def _draw_losses(axes: "Axes", comparison: Comparison) -> None:
    steps = sorted(comparison.run)
    losses = [comparison.run[step].loss for step in steps]
    last = comparison.run[comparison.last_seen].loss
    axes.axvspan(
        steps[0], comparison.last_seen, color=LIGHT, alpha=0.5, linewidth=0, label="seen by the methods"
    )
    axes.plot(steps, losses, "o-", color=BLUE, markersize=4, linewidth=1.4, label="as trained")
    for (method, score), colour, marker in zip(comparison.predicted.items(), _COLOURS, _MARKERS, strict=False):
        ends = [comparison.last_seen, comparison.target], [last, score.loss]
        axes.plot(*ends, color=colour, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(
            *[[end[1]] for end in ends],
            marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            linestyle="",
            label=method,
        )
    axes.set_xlim(steps[0], comparison.target * 1.03)
    axes.set_title("loss on held-out problems", fontsize=10, loc="left")
    axes.set_ylabel("nats per token of the answer", fontsize=10)
    axes.set_xlabel("step", fontsize=10)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    # Losses fall along the run, which leaves the lower left free, unless a prediction lies far above.
    collapsed = max(score.loss for score in comparison.predicted.values()) > max(losses)
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none", loc="upper left" if collapsed else "lower left")
    bare(axes, grid="y")


def _draw_distances(axes: "Axes", comparison: Comparison) -> None:
    names = [f"step {comparison.last_seen:,}", *comparison.distance]
    values = [comparison.distance_last_seen, *comparison.distance.values()]
    colours = [BLUE, *_COLOURS]
    axes.barh(range(len(values)), values, height=0.6, color=colours[: len(values)], alpha=0.85)
    notes = ["the last seen", *(f"skill {skill:.2f}".replace("-", "−") for skill in comparison.skill.values())]
    for row, (value, note) in enumerate(zip(values, notes, strict=True)):
        axes.text(value, row, f" {value:.3g}, {note}", va="center", fontsize=9, color=GREY)
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.set_xlim(0, 1.65 * max(values, default=1.0))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_title(f"distance to step {comparison.target:,} as trained", fontsize=10, loc="left")
    axes.set_xlabel("Euclidean, over all weights", fontsize=10)
    bare(axes, grid="x")
    axes.tick_params(axis="y", length=0)
