"""The figure of an evaluation: what models solve, against their step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptlin.report.style import BLUE, GREEN, GREY, VERMILION, bare, entitle, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ScoredModel", "draw_evaluation"]

_COLOURS = (BLUE, VERMILION, GREEN)


@dataclass(frozen=True)
class ScoredModel:
    """A model in the figure.

    Attributes
    ----------
    label : str
    step : int or None
        None for a model without one; if there is such a model, all stand in a row by their labels.
    method : str or None
        Of an extrapolated one.
    figures : mapping of str to (float, float, float)
        By metric: its value, and the ends of its interval.
    """

    label: str
    step: int | None
    method: str | None
    figures: Mapping[str, tuple[float, float, float]]


def draw_evaluation(models: Sequence[ScoredModel], *, title: str, lines: Sequence[str] = ()) -> "Figure":
    """Draw metrics against the step: trained models joined by a line, extrapolated ones as open diamonds.

    Parameters
    ----------
    models : sequence of ScoredModel
        All with the same metrics; the first three are drawn.
    title : str
    lines : sequence of str
        Below the title.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(8.4, 4.8)
    axes = figure.subplots()
    bare(axes, grid="y")
    entitle(figure, title, lines)
    in_a_row = any(model.step is None for model in models)
    place = {id(model): float(i) if in_a_row else float(model.step or 0) for i, model in enumerate(models)}
    metrics = list(models[0].figures)[: len(_COLOURS)]
    trained = [model for model in models if model.method is None]
    extrapolated = [model for model in models if model.method is not None]
    for metric, colour in zip(metrics, _COLOURS, strict=False):
        for group, manner in (
            (trained, {"marker": "o", "markersize": 5, "linestyle": "none" if in_a_row else "-"}),
            (
                extrapolated,
                {"marker": "D", "markersize": 7, "linestyle": "none", "markerfacecolor": "white"},
            ),
        ):
            if group:
                _draw_group(
                    axes, [place[id(m)] for m in group], [m.figures[metric] for m in group], colour, manner
                )
    if in_a_row:
        axes.set_xticks(range(len(models)), [model.label for model in models], rotation=20, ha="right")
    else:
        axes.set_xlabel("training step", fontsize=10)
    _name_extrapolated(axes, extrapolated, place, metrics[0], in_a_row=in_a_row)
    _explain(axes, metrics, with_extrapolated=bool(extrapolated))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if high - low > 0.06 else f"{value:.1%}")
    axes.margins(x=0.09)
    axes.set_ylabel("share solved", fontsize=10)
    return figure


def _draw_group(
    axes: "Axes",
    x: Sequence[float],
    figures: Sequence[tuple[float, float, float]],
    colour: str,
    manner: Mapping[str, object],
) -> None:
    values, lows, highs = np.array(figures).T
    axes.errorbar(
        x,
        values,
        # An interval that a transformation made need not hold its value to the last bit.
        yerr=np.clip([values - lows, highs - values], 0, None),
        color=colour,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
        **manner,  # type: ignore[arg-type]
    )


def _name_extrapolated(
    axes: "Axes", models: Sequence[ScoredModel], place: Mapping[int, float], metric: str, *, in_a_row: bool
) -> None:
    """Write the method beside each extrapolated model."""
    if in_a_row:  # their labels have it
        return
    for model in models:
        axes.annotate(
            model.method or "",
            (place[id(model)], model.figures[metric][0]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=GREY,
            parse_math=False,
        )


def _explain(axes: "Axes", metrics: Sequence[str], *, with_extrapolated: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker="o", label=metric)
        for metric, colour in zip(metrics, _COLOURS, strict=False)
    ]
    if with_extrapolated:
        handles.append(
            Line2D(
                [], [], color=GREY, marker="D", markerfacecolor="white", linestyle="none", label="extrapolated"
            )
        )
    axes.legend(handles=handles, fontsize=9, frameon=False, loc="best")
