"""Figures of a fit: the histogram of R², example trajectories, and R² by layer and module kind.

Each function takes results and returns a ``matplotlib.figure.Figure``; `save_figures` draws them all for a
store.  matplotlib is loaded when the first figure is drawn, and its global state (pyplot, rcParams) is left
alone.  No name of a tensor or store is read as mathematics, whatever ``$`` stands in it.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.atomic import write_file
from ckptlin.dtypes import TensorDType
from ckptlin.errors import InputError
from ckptlin.fit import read_summary
from ckptlin.report.examples import Example, pick_examples
from ckptlin.report.style import BLUE, GREY, LIGHT, VERMILION, bare, entitle, new_figure
from ckptlin.store.store import TrajectoryStore, describe_steps
from ckptlin.summary import NUM_BINS, FitSummary, GroupSummary, R2Figures
from ckptlin.urls import is_url

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FIGURE_FORMATS",
    "draw_examples",
    "draw_r2_by_layer",
    "draw_r2_histogram",
    "encode_figure",
    "save_figures",
]

FIGURE_FORMATS = ("png", "svg", "pdf")
_NUM_BARS = 50
# More lines than these and the grid of a dtype is a grey area.
_MAX_GRID_LINES = 20
# A cell narrower than this (inches) has no room for its figure.
_CELL_WITH_TEXT = 0.36
_MAX_KINDS = 40


def draw_r2_histogram(summary: FitSummary, *, name: str = "") -> "Figure":
    """Draw the histograms of R², of all that moved and of the paper's population, over that of random walks.

    Parameters
    ----------
    summary : FitSummary
    name : str
        What was fitted, for the title.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels.  A population without parameters is said to be empty.
    """
    model = summary.model()
    observed, null = summary.histogram()
    figure = new_figure(9.6, 4.0)
    panels = figure.subplots(1, 2, sharey=True)
    _entitle(figure, "How linear each parameter is in the step", name, summary.steps)
    populations = (
        ("all that moved", model.moved, model.null_moved, "no parameter changed between these steps"),
        (
            "the paper's filter",
            model.paper,
            model.null_paper,
            "none has a range above 1e-4 and 4 values",
        ),
    )
    for row, (axes, (title, figures, null_figures, empty)) in enumerate(zip(panels, populations, strict=True)):
        share = _percent(figures.count, model.num_params)
        counts = f"{figures.count:,.0f} of {model.num_params:,} parameters ({share})"
        axes.set_title(f"{title}: {counts}", fontsize=10, loc="left")
        axes.set_xlabel("R²", fontsize=10)
        axes.set_xlim(0, 1)
        bare(axes, grid="y")
        if figures.count:
            edges = np.linspace(0, 1, _NUM_BARS + 1)
            axes.stairs(
                _percentages(observed[row]),
                edges,
                fill=True,
                color=BLUE,
                alpha=0.75,
                label=_legend("run", figures),
            )
            if null_figures.count:
                label = _legend("random walks", null_figures)
                axes.stairs(_percentages(null[row]), edges, color=VERMILION, linewidth=1.6, label=label)
            axes.axvline(0.7, ymax=0.8, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.legend(loc="upper left", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
        else:
            _say(axes, empty)
    panels[0].set_ylabel(f"% of parameters in each bin of {1 / _NUM_BARS:g}", fontsize=10)
    if model.moved.count:
        # Room for the legend above the bars.
        panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.22)
    else:
        panels[0].set_yticks([])
    if len(summary.steps) == 2:
        figure.supxlabel("through two checkpoints every line fits: R² is 1", fontsize=9, color=GREY)
    return figure


def draw_examples(examples: Sequence[Example], *, name: str = "") -> "Figure":
    """Draw trajectories with their least-squares lines, one panel each.

    Where few values of the dtype lie within a panel they are drawn as light lines: the steps of a bfloat16
    staircase are those of its grid.

    Parameters
    ----------
    examples : sequence of Example
        At most 4 a row of panels; may be empty.
    name : str
        What was fitted, for the title.
    """
    if not examples:
        figure = new_figure(6.4, 2.0)
        axes = figure.subplots()
        axes.set_axis_off()
        _entitle(figure, "Example trajectories", name, ())
        _say(axes, "no parameter changed between these steps")
        return figure
    num_rows = 1 if len(examples) == 1 else -(-len(examples) // 2)
    num_columns = 1 if len(examples) == 1 else 2
    figure = new_figure(max(5.6, 4.8 * num_columns), 0.7 + 2.75 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    _entitle(figure, "Example trajectories and their least-squares lines", name, examples[0].steps)
    for axes in panels[len(examples) :]:
        axes.set_visible(False)
    for axes, example in zip(panels, examples, strict=False):
        _draw_example(axes, example)
    for axes in panels[max(0, len(examples) - num_columns) : len(examples)]:
        axes.set_xlabel("step", fontsize=10)
    return figure


def draw_r2_by_layer(summary: FitSummary, *, name: str = "") -> "Figure":
    """Draw the median R² of every layer and module kind as a heat map, or of the kinds alone as bars.

    Bars are drawn where no tensor belongs to a layer.  What lies outside the layers is named below the title.

    Parameters
    ----------
    summary : FitSummary
    name : str
        What was fitted, for the title.
    """
    layers, kinds, medians = summary.grid()
    return _draw_grid(summary, layers, kinds, medians, name) if layers else _draw_kinds(summary, name)


def encode_figure(figure: "Figure", file_format: str) -> bytes:
    """Return a figure as the bytes of a file; the same figure gives the same bytes.

    Raises
    ------
    InputError
        If the format is not one of `FIGURE_FORMATS`.
    """
    if file_format not in FIGURE_FORMATS:
        raise InputError(f"format {file_format!r} is not known; choose one of {', '.join(FIGURE_FORMATS)}")
    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_format)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A path may have characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format=file_format, dpi=150, metadata=date)
    return buffer.getvalue()


def save_figures(
    store: TrajectoryStore,
    out_dir: str | Path,
    *,
    fit: str = "default",
    summary: FitSummary | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw all figures of a fit into a directory, which is made if need be; files of the same names go.

    Parameters
    ----------
    store : TrajectoryStore
    out_dir : path-like
    fit : str
        Name of the fit.
    summary : FitSummary, optional
        Of a fit that is not kept in the store, in its place.
    formats : sequence of str
        Of `FIGURE_FORMATS`.

    Returns
    -------
    list of Path
        ``r2_histogram``, ``r2_by_layer`` and ``trajectories``, in each format.

    Raises
    ------
    InputError
        If a format is not known; nothing is then written.
    SelectionError, StaleFitError
        If the store has no such fit, or its checkpoints have been replaced.
    CorruptChunkError, DiskFullError
    """
    if not formats:
        raise InputError(f"no format was given; choose some of {', '.join(FIGURE_FORMATS)}")
    for file_format in formats:
        if file_format not in FIGURE_FORMATS:
            raise InputError(f"format {file_format!r} is not known; choose some of {', '.join(FIGURE_FORMATS)}")
    name = _short_name(store, fit if summary is None else "default")
    summary = read_summary(store, fit) if summary is None else summary
    figures = {
        "r2_histogram": draw_r2_histogram(summary, name=name),
        "r2_by_layer": draw_r2_by_layer(summary, name=name),
        "trajectories": draw_examples(pick_examples(store, summary), name=name),
    }
    directory = Path(out_dir)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, figure in figures.items():
        for file_format in dict.fromkeys(formats):
            path = directory / f"{stem}.{file_format}"
            write_file(path, encode_figure(figure, file_format))
            written.append(path)
    return written


def _draw_example(axes: "Axes", example: Example) -> None:
    steps = np.asarray(example.steps, np.float64)
    first = example.values[0]
    change = example.values - first
    line = example.line - first
    lo, hi = min(change.min(), line.min()), max(change.max(), line.max())
    margin = 0.08 * (hi - lo)
    axes.set_ylim(lo - margin, hi + margin)
    for value in _grid_values(example.dtype, first + lo - margin, first + hi + margin):
        axes.axhline(value - first, color=LIGHT, linewidth=0.8, zorder=0)
    axes.plot(steps, line, color=VERMILION, linewidth=1.8, zorder=1)
    axes.plot(steps, change, "o", color=BLUE, markersize=4.5, zorder=2)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(9)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.set_ylabel(f"change since step {example.steps[0]:,}", fontsize=9)
    bare(axes)
    index = f"[{', '.join(map(str, example.index))}]" if example.index else ""
    where = f"{_shorten(example.tensor, 46)}{index}"
    start = f"{first:.3g}".replace("-", "−")
    axes.set_title(
        f"{where}\nR² = {example.r2:.2f}    {example.dtype.zarr}, starts at {start}",
        fontsize=9.5,
        loc="left",
        parse_math=False,
    )


def _draw_grid(
    summary: FitSummary, layers: list[int], kinds: list[str], medians: np.ndarray[Any, Any], name: str
) -> "Figure":
    cell = min(0.62, max(_CELL_WITH_TEXT, 10.0 / len(layers))) if len(layers) <= 32 else 11.0 / len(layers)
    cell = max(cell, 0.08)
    width = max(5.6, 2.6 + cell * len(layers) + 1.0)
    figure = new_figure(width, 1.7 + 0.34 * len(kinds))
    axes = figure.subplots()
    _entitle(figure, "Median R² by layer and module", name, summary.steps, _outside(summary))
    # NaN is drawn as the axes' own background.
    axes.set_facecolor(LIGHT)
    edges = np.arange(len(layers) + 1) - 0.5, np.arange(len(kinds) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, medians.T, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    axes.invert_yaxis()
    axes.set_yticks(range(len(kinds)), [_shorten(kind, 34) for kind in kinds], fontsize=9, parse_math=False)
    stride = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if n * cell >= 0.26)
    shown = [i for i, layer in enumerate(layers) if layer % stride == 0]
    axes.set_xticks(shown, [str(layers[i]) for i in shown], fontsize=9)
    axes.set_xlabel("layer", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if cell >= _CELL_WITH_TEXT:
        for (x, y), median in np.ndenumerate(medians):
            text = "–" if np.isnan(median) else f"{median:.2f}".removeprefix("0")
            light = not np.isnan(median) and median < 0.55
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if light else "black")
    bar = figure.colorbar(mesh, ax=axes, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    null = summary.model().null_moved.median
    if null is not None:
        bar.ax.axhline(null, color=VERMILION, linewidth=2)
        bar.ax.set_xlabel(f"random\nwalks {_round(null)}", fontsize=8.5, color=VERMILION)
    if np.isnan(medians).any():
        figure.supxlabel("grey: no such tensor, or nothing in it changed", fontsize=9, color=GREY)
    return figure


def _draw_kinds(summary: FitSummary, name: str) -> "Figure":
    everything = summary.kinds()
    groups = sorted(everything, key=lambda group: -group.num_params)[:_MAX_KINDS]
    groups = [group for group in everything if group in groups]
    figure = new_figure(7.2, 1.6 + 0.36 * len(groups))
    axes = figure.subplots()
    left_out = (
        f"the {_MAX_KINDS} largest of {len(everything)} are shown" if len(everything) > len(groups) else ""
    )
    _entitle(figure, "R² by module: median and quartiles", name, summary.steps, left_out)
    for row, group in enumerate(groups):
        moved, null = group.moved, group.null_moved
        if moved.median is None or moved.q25 is None or moved.q75 is None:
            axes.text(0.01, row, "unchanged", va="center", fontsize=9, color=GREY)
            continue
        axes.barh(row, moved.median, height=0.62, color=BLUE, alpha=0.75, label="median" if row == 0 else None)
        axes.plot([moved.q25, moved.q75], [row, row], color="black", linewidth=1.3)
        if null.median is not None:
            axes.plot([null.median] * 2, [row - 0.4, row + 0.4], color=VERMILION, linewidth=2)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_yticks(
        range(len(groups)), [_shorten(group.name, 40) for group in groups], fontsize=9, parse_math=False
    )
    axes.set_xlim(0, 1)
    axes.set_xlabel("R² of all that moved (line: quartiles; red: median of random walks)", fontsize=9.5)
    bare(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    return figure


def _outside(summary: FitSummary) -> str:
    """Name the median R² of what belongs to no layer."""
    inside = set(summary.grid()[1])
    groups = [group for group in summary.kinds() if group.name not in inside]
    if all(group.moved.median is None for group in groups):
        return "outside the layers nothing changed" if groups else ""
    words = [f"{_shorten(group.name, 24)} {_median_of(group)}" for group in groups[:4]]
    return "outside the layers: " + ", ".join(words) + (", …" if len(groups) > 4 else "")


def _median_of(group: GroupSummary) -> str:
    return "unchanged" if group.moved.median is None else _round(group.moved.median)


def _entitle(figure: "Figure", title: str, name: str, steps: Sequence[int], more: str = "") -> None:
    described = describe_steps(steps) if steps else ""
    entitle(figure, title, (" · ".join(part for part in (name, described) if part), more))


def _say(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=10, color=GREY)


def _legend(what: str, figures: R2Figures) -> str:
    if figures.median is None or figures.above_7 is None:
        return what
    return f"{what}: median {_round(figures.median)}, {figures.above_7:.0%} above 0.7"


def _round(value: float) -> str:
    return f"{value:.2f}"


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole
    return f"{share:.0f}%" if share in (0, 100) else "<0.1%" if share < 0.1 else f"{min(share, 99.9):.1f}%"


def _percentages(histogram: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rebin a histogram of 1000 bins to bars, in percent of all; the empty one is 0."""
    bars: np.ndarray[Any, Any] = histogram.reshape(_NUM_BARS, NUM_BINS // _NUM_BARS).sum(axis=1)
    bars *= 100 / max(float(bars.sum()), 1.0)
    return bars


def _grid_values(dtype: TensorDType, lo: float, hi: float) -> list[float]:
    """List the values of a dtype between two bounds; none if they are more than can be told apart."""
    value = np.array(lo).astype(dtype.numpy)
    values: list[float] = []
    while float(value) <= hi:
        if float(value) >= lo:
            values.append(float(value))
        if len(values) > _MAX_GRID_LINES:
            return []
        value = np.nextafter(value, np.array(np.inf, dtype.numpy))
    return values


def _shorten(text: str, length: int) -> str:
    """Cut the middle out of a long name: its beginning and its end tell most."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[head - length + 1 :]}"


def _short_name(store: TrajectoryStore, fit: str) -> str:
    path = store.location if is_url(store.location) else str(store.path.resolve())
    name = "/".join(path.split("/")[-2:]) if path.count("/") > 1 else path
    return _shorten(name, 60) + ("" if fit == "default" else f", fit {fit}")
