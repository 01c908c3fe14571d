"""Figures of hidden states: R² layer by layer, and what the change of linear layers' outputs is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptlin.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION, bare, entitle, new_figure
from ckptlin.summary import R2Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LayerR2", "PartShares", "draw_decomposition", "draw_layer_r2"]

_PARTS = (("input: WΔx", BLUE), ("weight: ΔWx", ORANGE), ("both: ΔWΔx", GREEN))
_MAX_LABELS = 40


@dataclass(frozen=True)
class LayerR2:
    """A layer in the figure.

    Attributes
    ----------
    name : str
    mean : float or None
        Over tokens.
    figures, null : R2Figures
        Of coordinates, and of random walks.
    """

    name: str
    mean: float | None
    figures: R2Figures
    null: R2Figures


@dataclass(frozen=True)
class PartShares:
    """A bar in the figure of the decomposition, and its null beside it.

    Attributes
    ----------
    name : str
    shares, null_shares : sequence of float or None
        Of input, weight and both; their sum is 1.  None where nothing changed.
    """

    name: str
    shares: Sequence[float] | None
    null_shares: Sequence[float] | None


def draw_layer_r2(layers: Sequence[LayerR2], *, title: str, lines: Sequence[str] = ()) -> "Figure":
    """Draw each layer's R²: mean over tokens, median and quartiles of coordinates, with those of walks."""
    figure = new_figure(max(6.4, 2.4 + 0.34 * min(len(layers), _MAX_LABELS)), 4.2)
    axes = figure.subplots()
    entitle(figure, title, lines)
    for place, layer in enumerate(layers):
        own, null = layer.figures, layer.null
        if null.median is not None and null.q25 is not None and null.q75 is not None:
            axes.fill_between(
                [place - 0.45, place + 0.45], null.q25, null.q75, color=VERMILION, alpha=0.15, linewidth=0
            )
            axes.plot([place - 0.45, place + 0.45], [null.median] * 2, color=VERMILION, linewidth=1.8)
        if layer.mean is None or own.median is None or own.q25 is None or own.q75 is None:
            axes.text(place, 0.03, "unchanged", rotation=90, ha="center", va="bottom", fontsize=9, color=GREY)
            continue
        axes.plot([place] * 2, [own.q25, own.q75], color=BLUE, linewidth=3, alpha=0.5)
        axes.plot(place, own.median, "_", color=BLUE, markersize=13, markeredgewidth=2)
        axes.plot(place, layer.mean, "o", color=BLUE, markersize=5)
    _label(axes, [layer.name for layer in layers])
    axes.set_ylim(0, 1)
    axes.set_ylabel("R²", fontsize=10)
    bare(axes, grid="y")
    named: tuple[tuple[str, dict[str, Any]], ...] = (
        ("mean over tokens", {"marker": "o", "linestyle": "", "markersize": 5, "color": BLUE}),
        ("median of coordinates", {"marker": "_", "linestyle": "", "markersize": 13, "color": BLUE}),
        ("quartiles", {"color": BLUE, "linewidth": 3, "alpha": 0.5}),
        ("random walks: median and quartiles", {"color": VERMILION, "linewidth": 1.8}),
    )
    handles = [axes.plot([], [], label=label, **how)[0] for label, how in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def draw_decomposition(
    layers: Sequence[PartShares], kinds: Sequence[PartShares], *, title: str, lines: Sequence[str] = ()
) -> "Figure":
    """Draw stacked shares by layer and by kind of module, those of the null hatched and paler beside them.

    A share may be negative, where a part works against the change: it hangs below 0.
    """
    sizes = [min(len(bars), _MAX_LABELS) for bars in (layers, kinds)]
    figure = new_figure(max(9.0, 2.2 + 0.55 * sum(sizes)), 4.6)
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[max(size, 3) for size in sizes])
    entitle(figure, title, lines)
    low, high = 0.0, 1.0
    for axes, bars in zip(panels, (layers, kinds), strict=True):
        for place, bar in enumerate(bars):
            if bar.shares is None:
                axes.text(place, 0.03, "unchanged", rotation=90, ha="center", fontsize=9, color=GREY)
            for shares, offset, how in (
                (bar.shares, -0.2, {}),
                (bar.null_shares, 0.2, {"alpha": 0.45, "hatch": "////", "edgecolor": "white", "linewidth": 0}),
            ):
                bottom, top = _stack(axes, place + offset, shares, how)
                low, high = min(low, bottom), max(high, top)
        _label(axes, [bar.name for bar in bars])
        axes.axhline(0, color="black", linewidth=0.8)
        bare(axes, grid="y")
    panels[0].set_ylim(low - 0.02, high + 0.02)
    panels[0].set_ylabel("share of ‖Δy‖²", fontsize=10)
    handles: list[Any] = [panels[0].bar([0], [0], color=color, label=label) for label, color in _PARTS]
    pale = {"color": GREY, "alpha": 0.45, "hatch": "////", "edgecolor": "white"}
    handles.append(panels[0].bar([0], [0], label="the same change, shuffled", **pale))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _stack(
    axes: "Axes", place: float, shares: Sequence[float] | None, how: dict[str, Any]
) -> tuple[float, float]:
    """Draw a bar; return its lower and upper end."""
    low = high = 0.0
    for share, (_, color) in zip(shares or (), _PARTS, strict=False):
        axes.bar(place, share, 0.38, bottom=high if share > 0 else low, facecolor=color, **how)
        low, high = low + min(share, 0.0), high + max(share, 0.0)
    return low, high


def _label(axes: "Axes", names: Sequence[str]) -> None:
    stride = -(-len(names) // _MAX_LABELS)
    places = range(0, len(names), stride)
    long = max(map(len, names)) > 3 and len(names) > 5
    turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(places, [names[place] for place in places], fontsize=9, parse_math=False, **turn)
    axes.tick_params(axis="x", length=0)
