"""The demo's own figures: how the reward rose, and what the extrapolations are worth."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ckptlin.demo.comparison import Comparison
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

__all__ = ["draw_comparison", "draw_rewards"]

_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "sD^vP"
_RUNNING = 20


def draw_rewards(rewards: Sequence[float], saves: Sequence[int], *, name: str = "") -> "Figure":
    """Draw the mean reward of every step, its running mean, and where checkpoints were saved.

    Parameters
    ----------
    rewards : sequence of float
        Of the steps 1, 2, ...
    saves : sequence of int
        Steps of the checkpoints.
    name : str
        What was trained, for the title.
    """
    figure = new_figure(9.2, 3.8)
    axes = figure.subplots()
    entitle(figure, "Reward while training", [name] if name else [])
    steps = np.arange(1, len(rewards) + 1)
    axes.plot(steps, rewards, "o", color=SKY, markersize=3, alpha=0.6, linewidth=0, label="mean of a step")
    width = min(_RUNNING, len(rewards))
    running = np.convolve(rewards, np.full(width, 1 / width), mode="valid")
    # Each mean stands at the last of its steps: what lies ahead is in none of them.
    axes.plot(steps[width - 1 :], running, color=BLUE, linewidth=2, label=f"mean of the last {width}")
    place = axes.get_xaxis_transform()
    axes.plot(
        saves, [0.0] * len(saves), "|", color=VERMILION, markersize=11, markeredgewidth=1.6, transform=place,
        clip_on=False, label="checkpoint",
    )  # fmt: skip
    axes.set_xlim(-0.01 * len(rewards), 1.02 * len(rewards))
    axes.set_xlabel("step", fontsize=10)
    axes.set_ylabel("share of right answers", fontsize=10)
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none", loc="upper left")
    bare(axes, grid="y")
    return figure


def draw_comparison(comparison: Comparison, *, name: str = "") -> "Figure":
    """Draw pass@1 along the run with the predicted one, and the distance to the trained checkpoint.

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
    _draw_pass(left, comparison)
    _draw_distances(right, comparison)
    return figure


def _draw_pass(axes: "Axes", comparison: Comparison) -> None:
    steps, target, last = sorted(comparison.trained), comparison.target, comparison.last_seen
    axes.axvspan(steps[0], last, color=LIGHT, alpha=0.5, linewidth=0, label="seen by the methods")
    axes.errorbar(
        steps,
        [comparison.trained[step].pass_at_1 for step in steps],
        [comparison.trained[step].standard_error for step in steps],
        fmt="o-",
        color=BLUE,
        markersize=4,
        linewidth=1.4,
        capsize=2.5,
        label="as trained",
    )
    # Beside the target's line, not on it: error bars of nearly the same height would hide one another.
    apart = 0.03 * (target - steps[0])
    pairs = zip(comparison.predicted.items(), _COLOURS, _MARKERS, strict=False)
    for row, ((method, found), colour, marker) in enumerate(pairs, start=1):
        axes.errorbar(
            [target + row * apart],
            [found.pass_at_1],
            [found.standard_error],
            fmt=marker,
            color=colour,
            markersize=6,
            elinewidth=1.4,
            capsize=2.5,
            label=method,
        )
    axes.set_xlim(steps[0] - apart, target + (len(comparison.predicted) + 1) * apart)
    axes.set_title("pass@1 at temperature 1 on held-out sums, ± standard error", fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=10)
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none", loc="upper left")
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
