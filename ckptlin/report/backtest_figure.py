"""The figure of a backtest: skill against horizon, a line for each method."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.atomic import write_file
from ckptlin.backtest import AUTO, BacktestResult, SkillFigures
from ckptlin.errors import InputError
from ckptlin.report.figures import FIGURE_FORMATS, encode_figure
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
from ckptlin.store.store import describe_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_figure_path", "draw_backtest", "save_figure"]

_COLOURS = (VERMILION, GREEN, ORANGE, PURPLE, SKY)
# Drawn in colour besides `auto`, whatever its skill: what the paper does.
_REFERENCE = "two-point"
_BASELINE = "persistence"
_NUM_COLOURED = 5
# The figure's lower edge at most; a grey line that ends below it is named under the figure instead.
_LOWEST = -0.55
# Bounds of the reach that one point of a line stands for: four to a doubling.
_EDGES = 2.0 ** np.arange(0.125, 2.2, 0.25)
_LINE_HEIGHT = 0.052


def draw_backtest(result: BacktestResult, *, name: str = "") -> "Figure":
    """Draw the skill of every method against the horizon.

    A point is the mean over origins of the predictions within 9% of its horizon.  ``auto``, the paper's
    two-point and the best methods are coloured, and the spread over origins (a standard deviation to either
    side) is shaded for the first two; other methods are grey.  The dashed line is the ceiling that the rounding
    of the checkpoints sets.

    Parameters
    ----------
    result : BacktestResult
    name : str
        What was judged, for the title.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(9.2, 5.0)
    axes = figure.subplots()
    steps = describe_steps(result.scores.steps)
    entitle(
        figure,
        "How well later checkpoints were predicted",
        (" · ".join(part for part in (name, steps) if part),),
    )
    curves = {n: curve for n in result.names if n != _BASELINE for curve in (_curve(result, n),) if curve}
    bare(axes, grid="y")
    axes.axhline(0.0, color=GREY, linewidth=1.0)
    if not curves:
        axes.set_axis_off()
        text = "no checkpoint lies far enough ahead of another"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
        return figure
    coloured = _coloured(curves)
    labels: list[tuple[float, str, str]] = []
    hidden = []
    for method, curve in curves.items():
        x = [point[0] for point in curve]
        means = np.array([point[1].mean for point in curve])
        if method not in coloured:
            axes.plot(x, means, color=LIGHT, linewidth=1.3, zorder=1.5)
            if means[-1] < _LOWEST:
                hidden.append(method)
            else:
                labels.append((means[-1], method, "#999999"))
            continue
        colour = coloured[method]
        width = 2.6 if method == AUTO else 1.7
        axes.plot(x, means, color=colour, linewidth=width, marker="o", markersize=3.5 + width / 3, zorder=3)
        labels.append((means[-1], method, colour))
        if method in (AUTO, _REFERENCE):
            spread = np.nan_to_num(np.array([point[1].std for point in curve]))
            axes.fill_between(
                x, means - spread, means + spread, color=colour, alpha=0.13, linewidth=0, zorder=2
            )
    last = max(curve[-1][0] for curve in curves.values())
    first = min(curve[0][0] for curve in curves.values())
    _draw_ceiling(axes, result)
    axes.set_ylim(max(_LOWEST, min(_lowest(curves), 0.0) - 0.08), 1.06)
    axes.set_xscale("log")
    axes.set_xlim(first / 1.03, last * 1.05)
    ticks = [tick for tick in (1.25, 1.5, 2, 3, 4) if first / 1.03 <= tick <= last * 1.05]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("horizon: the target, in spans observed", fontsize=10)
    axes.set_ylabel("skill", fontsize=10)
    _name_lines(axes, labels)
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "top"}
    axes.text(0.995, -0.008, "the last checkpoint", fontsize=8.5, color=GREY, **place)
    if hidden:
        figure.supxlabel(f"grey, and below the figure in the end: {', '.join(hidden)}", fontsize=9, color=GREY)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format that the end of its file's name says.

    Raises
    ------
    InputError
        If that is none of `FIGURE_FORMATS`.
    """
    check_figure_path(path)
    write_file(path, encode_figure(figure, path.suffix.removeprefix(".")))


def check_figure_path(path: Path) -> None:
    """Raise `InputError` if a file's name does not end in one of `FIGURE_FORMATS`."""
    if path.suffix.removeprefix(".") not in FIGURE_FORMATS:
        known = ", ".join(f".{file_format}" for file_format in FIGURE_FORMATS)
        raise InputError(f"a figure cannot be written to {path}; let its name end in one of {known}")


def _curve(result: BacktestResult, method: str) -> list[tuple[float, SkillFigures]]:
    """Return the horizons that are known, each with its figures."""
    bounds = pairwise(_EDGES)
    found = [(float(np.sqrt(lo * hi)), result.figures_within(method, lo, hi)) for lo, hi in bounds]
    return [(horizon, figures) for horizon, figures in found if figures is not None]


def _coloured(curves: dict[str, list[tuple[float, SkillFigures]]]) -> dict[str, Any]:
    """Choose the methods that are worth a colour: ``auto``, the reference, and the best."""
    means = {n: float(np.mean([max(f.mean, -1.0) for _, f in curve])) for n, curve in curves.items()}
    ranked = sorted(curves, key=lambda n: -means[n])
    others = [n for n in ranked if n not in (AUTO, _REFERENCE) and means[n] > 0.0]
    chosen = [n for n in (_REFERENCE,) if n in curves]
    chosen += others[: _NUM_COLOURED - len(chosen)]
    return {**({AUTO: BLUE} if AUTO in curves else {}), **dict(zip(chosen, _COLOURS, strict=False))}


def _lowest(curves: dict[str, list[tuple[float, SkillFigures]]]) -> float:
    return min(min(figures.mean for _, figures in curve) for curve in curves.values())


def _draw_ceiling(axes: "Axes", result: BacktestResult) -> None:
    points = []
    for lo, hi in pairwise(_EDGES):
        ceiling = result.ceiling_within(lo, hi)
        if ceiling is not None:
            points.append((float(np.sqrt(lo * hi)), ceiling))
    axes.plot(*zip(*points, strict=True), color="black", linewidth=1.2, linestyle=(0, (4, 3)), zorder=2.5)
    text = "what rounding allows"
    axes.annotate(
        text, points[0], xytext=(4, -4), textcoords="offset points", va="top", fontsize=8.5, color="black"
    )


def _name_lines(axes: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Write each method's name at the right end of its line, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    apart = _LINE_HEIGHT * (high - low)
    ordered = sorted(labels, key=lambda label: -label[0])
    places: list[float] = []
    for y, _, _ in ordered:
        wanted = min(max(y, low), high)
        places.append(min(wanted, places[-1] - apart) if places else wanted)
    # What was pushed below the edge goes up again, and pushes what is above it.
    for index in range(len(places) - 1, -1, -1):
        floor = low if index == len(places) - 1 else places[index + 1] + apart
        places[index] = max(places[index], floor)
    for place, (_, method, colour) in zip(places, ordered, strict=True):
        axes.annotate(
            method,
            (1.0, place),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5 if method == AUTO else 9,
            fontweight="bold" if method == AUTO else "normal",
            color=colour,
            annotation_clip=False,
            parse_math=False,
        )
