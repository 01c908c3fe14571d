"""Colours and manners that all figures share: safe for colour-blind readers, and in grey where it can be."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "bare",
    "entitle",
    "new_figure",
]

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE = "#56B4E9", "#CC79A7"
GREY, LIGHT = "#555555", "#DDDDDD"

# DejaVu Sans at 9.5 points.
_CHARACTERS_PER_INCH = 12.5


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, size in inches, that arranges what is put into it."""
    # The object-oriented interface alone: pyplot keeps every figure alive and is not safe in threads.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def bare(axes: "Axes", *, grid: Any = None) -> None:
    """Take away the frame's upper and right edge; ``grid`` draws light lines across that axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if grid is not None:
        axes.grid(axis=grid, color=LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)


def entitle(figure: "Figure", title: str, lines: Sequence[str] = ()) -> None:
    """Write a title and lines below it (empty ones are left out) at the upper left; what is drawn makes room.

    Nothing in them is read as mathematics.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = figure.get_size_inches()
    per_line = int(width * _CHARACTERS_PER_INCH)
    below = [part for line in lines for part in textwrap.wrap(line, per_line)]
    place: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", **place)
    for row, line in enumerate(below):
        top = 0.36 + 0.19 * row
        figure.text(0.1 / width, 1 - top / height, line, fontsize=9.5, color=GREY, **place)
    header = 0.42 + 0.19 * len(below)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - header / height))
