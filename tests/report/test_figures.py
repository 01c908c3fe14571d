import subprocess
import sys
from itertools import combinations

import matplotlib
import ml_dtypes
import numpy as np
import pytest
from matplotlib.patches import StepPatch

from ckptlin.errors import InputError, SelectionError, StaleFitError
from ckptlin.fit import fit, read_summary
from ckptlin.ingest import ingest
from ckptlin.naming import module_kind
from ckptlin.report import (
    FIGURE_FORMATS,
    draw_examples,
    draw_r2_by_layer,
    draw_r2_histogram,
    save_figures,
)
from ckptlin.report.examples import EXAMPLE_QUANTILES, pick_examples
from ckptlin.report.figures import encode_figure
from ckptlin.store.store import TrajectoryStore
from tests.runs import save_checkpoint, stored_bits

STEPS = tuple(range(0, 1300, 100))
STEMS = ["r2_histogram", "r2_by_layer", "trajectories"]


def layers(num_layers, size=16):
    shapes = {
        "self_attn.q_proj.weight": (size, size),
        "self_attn.q_proj.bias": (size,),
        "mlp.up_proj.weight": (2 * size, size),
        "post_attention_layernorm.weight": (size,),
    }
    inside = {
        f"model.layers.{layer}.{name}": shape for layer in range(num_layers) for name, shape in shapes.items()
    }
    return {"model.embed_tokens.weight": (40, size), **inside, "model.norm.weight": (size,)}


@pytest.fixture
def make_store(tmp_path):
    """Make a fitted store of weights that drift, each at its own rate, and walk at random."""

    def make(shapes, *, steps=STEPS, dtype=ml_dtypes.bfloat16, drift=1e-6, walk=1e-4, name="store"):
        rng = np.random.default_rng(0)
        first = {key: rng.normal(0, 0.03, shape) for key, shape in shapes.items()}
        slope = {key: rng.normal(0, drift, shape) for key, shape in shapes.items()}
        noise = {key: np.zeros(shape) for key, shape in shapes.items()}
        for step in steps:
            weights = {key: np.asarray(first[key] + slope[key] * step + noise[key], dtype) for key in shapes}
            save_checkpoint(tmp_path / f"{name}-run" / f"checkpoint-{step}", weights, None)
            noise = {key: noise[key] + rng.normal(0, walk, shape) for key, shape in shapes.items()}
        fit(ingest(tmp_path / f"{name}-run", tmp_path / name).store)
        return TrajectoryStore(tmp_path / name)

    return make


def figures_of(store):
    summary = read_summary(store)
    return {
        "r2_histogram": draw_r2_histogram(summary, name="store"),
        "r2_by_layer": draw_r2_by_layer(summary, name="store"),
        "trajectories": draw_examples(pick_examples(store, summary), name="store"),
    }


def examples_of(store):
    return pick_examples(store, read_summary(store))


def texts_of(figure):
    """Return every text that is drawn: titles, labels, ticks within the axes' limits, legends, and so on."""
    figure.draw_without_rendering()
    found = list(figure.texts)
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        found += [axes.title, axes._left_title, *axes.texts]
        if axes.get_legend() is not None:
            found += axes.get_legend().get_texts()
        if not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            lo, hi = sorted(axis.get_view_interval())
            found += [axis.label, axis.get_offset_text()]
            found += [tick.label1 for tick in axis.get_major_ticks() if lo <= tick.get_loc() <= hi]
    return [text for text in found if text.get_visible() and text.get_text()]


def assert_readable(figure):
    """Assert that every text lies on the canvas and none on another."""
    texts = texts_of(figure)
    width, height = figure.canvas.get_width_height()
    extents = [text.get_window_extent() for text in texts]
    for text, extent in zip(texts, extents, strict=True):
        inside = extent.x0 >= -1 and extent.y0 >= -1 and extent.x1 <= width + 1 and extent.y1 <= height + 1
        assert inside, (text.get_text(), extent.extents)
    for (one, a), (other, b) in combinations(zip(texts, extents, strict=True), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or along <= 1, (one.get_text(), other.get_text())


def words_of(figure):
    return "\n".join(text.get_text() for text in texts_of(figure))


# --- R² histogram -------------------------------------------------------------------------------------


def test_the_histogram_shows_both_populations_in_percent_over_their_random_walks(make_store):
    summary = read_summary(make_store(layers(2)))
    figure = draw_r2_histogram(summary, name="my/store")
    model = summary.model()
    populations = ((model.moved, model.null_moved), (model.paper, model.null_paper))
    observed, null = summary.histogram()
    assert "my/store · 13 steps, 0 to 1200" in words_of(figure)
    assert len(figure.axes) == 2
    for row, (axes, (figures, null_figures)) in enumerate(zip(figure.axes, populations, strict=True)):
        assert f"{figures.count:,.0f} of {model.num_params:,} parameters" in axes.get_title(loc="left")
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            f"run: median {figures.median:.2f}, {figures.above_7:.0%} above 0.7",
            f"random walks: median {null_figures.median:.2f}, {null_figures.above_7:.0%} above 0.7",
        ]
        for patch, histogram in zip(
            (p for p in axes.patches if isinstance(p, StepPatch)), (observed[row], null[row]), strict=True
        ):
            values, edges, _ = patch.get_data()
            expected = [histogram[i : i + 20].sum() for i in range(0, 1000, 20)]
            np.testing.assert_allclose(values, 100 * np.array(expected) / histogram.sum())
            np.testing.assert_allclose(edges, np.linspace(0, 1, 51))


def test_the_histogram_says_when_no_parameter_passes_the_filter(make_store):
    summary = read_summary(make_store(layers(1), dtype=np.float32, drift=1e-9, walk=1e-8))
    figure = draw_r2_histogram(summary)
    moved, paper = figure.axes
    assert moved.get_legend() is not None
    assert paper.get_legend() is None
    assert "none has a range above 1e-4" in words_of(figure)
    assert_readable(figure)


def test_the_histogram_of_two_checkpoints_says_that_every_line_fits(make_store):
    summary = read_summary(make_store(layers(1), steps=(0, 500)))
    figure = draw_r2_histogram(summary)
    assert "through two checkpoints every line fits" in words_of(figure)
    assert "median 1.00, 100% above 0.7" in words_of(figure)


# --- example trajectories -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_examples_hold_the_stored_weights_and_their_least_squares_line(make_store, dtype):
    store = make_store(layers(3), dtype=dtype)
    examples = examples_of(store)
    assert len(examples) == len(EXAMPLE_QUANTILES)
    for example in examples:
        bits = stored_bits(store, example.tensor)[(slice(None), *example.index)]
        values = bits.view(store.tensors[example.tensor].dtype.numpy).astype(np.float64)
        np.testing.assert_array_equal(example.values, values)
        assert example.steps == STEPS
        assert example.r2 == pytest.approx(np.corrcoef(STEPS, values)[0, 1] ** 2, abs=1e-9)
        np.testing.assert_allclose(
            example.line, np.polyval(np.polyfit(STEPS, values, 1), STEPS), rtol=0, atol=1e-12
        )


def test_examples_lie_near_the_quantiles_of_what_moved_in_different_kinds_of_modules(make_store):
    store = make_store(layers(3), dtype=np.float32)
    examples = examples_of(store)
    r2 = []
    for name, spec in store.tensors.items():
        values = stored_bits(store, name).reshape(len(STEPS), -1).view(spec.dtype.numpy).astype(np.float64)
        r2.append([np.corrcoef(STEPS, column)[0, 1] ** 2 for column in values.T])
    expected = np.quantile(np.concatenate(r2), EXAMPLE_QUANTILES)
    np.testing.assert_allclose([example.r2 for example in examples], expected, atol=0.04)
    assert len({module_kind(example.tensor) for example in examples}) == len(examples)
    assert [(e.tensor, e.index) for e in examples_of(store)] == [(e.tensor, e.index) for e in examples]


def test_examples_cost_one_block_each_and_not_the_whole_store(make_store, monkeypatch):
    store = make_store(layers(12))
    chunks = []
    read_chunk = TrajectoryStore.read_chunk

    def counted(self, block, chunk_row, *buffer):
        chunks.append((block.tensor, block.index, chunk_row))
        return read_chunk(self, block, chunk_row, *buffer)

    monkeypatch.setattr(TrajectoryStore, "read_chunk", counted)
    examples_of(store)
    assert len(chunks) == len(EXAMPLE_QUANTILES)


def test_examples_of_a_long_run_are_read_over_all_rows_of_chunks(make_store):
    steps = tuple(range(0, 370, 10))
    store = make_store({"w": (8, 8)}, steps=steps)
    example = examples_of(store)[0]
    assert store.record.chunk_steps < len(steps)
    assert example.steps == steps
    assert example.values.shape == (len(steps),)


def test_examples_of_a_fit_show_the_steps_of_that_fit(make_store):
    store = make_store(layers(1))
    fit(store, name="early", steps="0:500")
    store = TrajectoryStore(store.path)
    assert pick_examples(store, read_summary(store, "early"))[0].steps == tuple(s for s in STEPS if s <= 500)


def test_a_single_tensor_gives_examples_at_different_places(make_store):
    examples = examples_of(make_store({"w": (12, 12)}))
    assert len({example.index for example in examples}) == len(EXAMPLE_QUANTILES)


@pytest.mark.parametrize(("shape", "index", "title"), [((), (), "w\n"), ((1,), (0,), "w[0]\n")])
def test_a_single_parameter_gives_a_single_example(make_store, shape, index, title):
    (example,) = examples_of(make_store({"w": shape}, drift=1e-5))
    assert example.index == index
    figure = draw_examples([example])
    assert figure.axes[0].get_title(loc="left").startswith(title)
    assert_readable(figure)


def test_a_bfloat16_staircase_is_drawn_on_the_lines_of_its_grid(make_store):
    examples = examples_of(make_store(layers(2), drift=2e-7))
    figure = draw_examples(examples)
    drawn = 0
    for axes, example in zip(figure.axes, examples, strict=True):
        grid = [line for line in axes.lines if line.get_color() == "#DDDDDD"]
        assert len(grid) <= 20
        values = [example.values[0] + line.get_ydata()[0] for line in grid]
        np.testing.assert_allclose(
            np.array(values).astype(ml_dtypes.bfloat16).astype(float), values, rtol=1e-12
        )
        if grid:
            assert set(np.round(example.values, 12)) <= set(np.round(values, 12))
        drawn += len(grid)
    assert drawn


def test_the_grid_of_float32_is_too_fine_to_draw(make_store):
    figure = draw_examples(examples_of(make_store(layers(1), dtype=np.float32)))
    assert all(len(axes.lines) == 2 for axes in figure.axes)


# --- R² by layer --------------------------------------------------------------------------------------


def test_the_heat_map_shows_the_median_of_each_layer_and_kind(make_store):
    summary = read_summary(make_store(layers(3)))
    figure = draw_r2_by_layer(summary)
    numbers, kinds, medians = summary.grid()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == kinds
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(n) for n in numbers]
    np.testing.assert_array_equal(axes.collections[0].get_array(), medians.T)
    shown = {(t.get_position()[0], t.get_position()[1]): t.get_text() for t in axes.texts}
    assert shown[1, 2] == f"{medians[1, 2]:.2f}".removeprefix("0")
    assert len(shown) == medians.size
    assert "embed_tokens" in words_of(figure)
    assert f"walks {summary.model().null_moved.median:.2f}" in words_of(figure)


def test_the_heat_map_of_many_layers_leaves_out_what_would_overlap(make_store):
    summary = read_summary(make_store(layers(60, 4)))
    figure = draw_r2_by_layer(summary)
    axes = figure.axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", "2", "4"]
    assert_readable(figure)


def test_a_kind_that_some_layers_lack_is_grey_there_and_said_to_be(make_store):
    shapes = layers(3)
    del shapes["model.layers.1.self_attn.q_proj.bias"]
    figure = draw_r2_by_layer(read_summary(make_store(shapes)))
    assert [t.get_text() for t in figure.axes[0].texts].count("–") == 1
    assert "grey: no such tensor" in words_of(figure)


def test_without_layers_there_are_bars_for_the_kinds(make_store):
    summary = read_summary(make_store({"conv.weight": (8, 8), "fc.weight": (8, 8), "fc.bias": (8,)}))
    figure = draw_r2_by_layer(summary)
    (axes,) = figure.axes
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == ["conv", "fc", "fc.bias"]
    by_kind = {group.name: group.moved.median for group in summary.kinds()}
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [by_kind[label.get_text()] for label in axes.get_yticklabels()]


def test_of_very_many_kinds_the_largest_are_shown_and_the_others_counted(make_store):
    shapes = {f"w{chr(97 + i // 26)}{chr(97 + i % 26)}": (3 + i,) for i in range(45)}
    figure = draw_r2_by_layer(read_summary(make_store(shapes)))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 40
    assert "waa" not in labels
    assert "the 40 largest of 45 are shown" in words_of(figure)


# --- all of them --------------------------------------------------------------------------------------

CASES = {
    "bfloat16": {"shapes": layers(4)},
    "float32": {"shapes": layers(2), "dtype": np.float32},
    "28 layers": {"shapes": layers(28, 4)},
    "one layer": {"shapes": layers(1)},
    "two steps": {"shapes": layers(2), "steps": (0, 100)},
    "no layers": {"shapes": {"conv.weight": (8, 8), "fc.weight": (8, 8)}},
    "one tensor": {"shapes": {"w": (8, 8)}},
    "one parameter": {"shapes": {"w": ()}, "drift": 1e-5},
    "nothing moved": {"shapes": layers(2), "drift": 0, "walk": 0},
    "mathematics in names": {"shapes": {"a$b_{c$.weight": (8, 8), "model.layers.0.$x^$": (8, 8)}},
    "long names": {
        "shapes": {f"model.{'very_' * 20}long.layers.0.{'deep.' * 20}{i}x.weight": (9,) for i in range(5)}
    },
    "large steps": {"shapes": layers(2), "steps": tuple(range(0, 1_300_000, 100_000)), "drift": 1e-9},
}


@pytest.mark.parametrize("case", CASES)
def test_every_text_of_every_figure_is_on_the_canvas_and_on_no_other(make_store, case):
    for figure in figures_of(make_store(**CASES[case])).values():
        assert_readable(figure)


def test_a_store_in_which_nothing_moved_gets_figures_that_say_so(make_store):
    figures = figures_of(make_store(**CASES["nothing moved"]))
    assert words_of(figures["r2_histogram"]).count("no parameter changed") == 1
    assert "no parameter changed" in words_of(figures["trajectories"])
    assert "outside the layers nothing changed" in words_of(figures["r2_by_layer"])


def test_save_figures_writes_each_figure_in_each_format_and_nothing_else(make_store, tmp_path):
    out = tmp_path / "a" / "figures"
    paths = save_figures(make_store(layers(1)), out, formats=FIGURE_FORMATS)
    assert paths == [out / f"{stem}.{suffix}" for stem in STEMS for suffix in FIGURE_FORMATS]
    assert sorted(out.iterdir()) == sorted(paths)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for path in paths:
        assert path.read_bytes().startswith(starts[path.suffix[1:]])


def test_a_fit_that_is_not_kept_can_be_drawn(make_store, tmp_path):
    store = make_store(layers(1))
    window = fit(store, steps="0:500", keep=False).summary
    drawn = save_figures(store, tmp_path / "window", summary=window)
    whole = save_figures(store, tmp_path / "whole")
    assert [path.name for path in drawn] == [f"{stem}.png" for stem in STEMS]
    for one, other in zip(drawn, whole, strict=True):
        assert one.read_bytes() != other.read_bytes()
    assert pick_examples(store, window)[0].steps == (0, 100, 200, 300, 400, 500)


def test_a_name_that_the_font_cannot_show_is_no_obstacle(make_store, tmp_path):
    store = make_store({"层.0.w": (4, 4)}, name="实验")
    assert all(path.stat().st_size for path in save_figures(store, tmp_path / "图", formats=FIGURE_FORMATS))


def test_the_same_store_gives_the_same_bytes(make_store, tmp_path):
    store = make_store(layers(1))
    first = [path.read_bytes() for path in save_figures(store, tmp_path / "figures")]
    assert [path.read_bytes() for path in save_figures(store, tmp_path / "figures")] == first


def test_the_name_of_another_fit_stands_in_the_figures(make_store):
    store = make_store(layers(1))
    fit(store, name="early", steps="0:500")
    figure = draw_r2_histogram(read_summary(TrajectoryStore(store.path), "early"), name="x")
    assert "6 steps, 0 to 500" in words_of(figure)


@pytest.mark.parametrize("formats", [("jpeg",), ("png", "PNG"), ()])
def test_an_unknown_format_is_refused_before_anything_is_written(make_store, tmp_path, formats):
    with pytest.raises(InputError, match="png, svg, pdf"):
        save_figures(make_store(layers(1)), tmp_path / "figures", formats=formats)
    assert not (tmp_path / "figures").exists()
    with pytest.raises(InputError, match="format 'gif' is not known"):
        encode_figure(draw_examples([]), "gif")


def test_a_missing_or_stale_fit_is_refused(make_store, tmp_path):
    store = make_store({"w": (4, 4)})
    with pytest.raises(SelectionError, match="no fit named 'other'"):
        save_figures(store, tmp_path / "figures", fit="other")
    save_checkpoint(tmp_path / "store-run" / "checkpoint-0", {"w": np.ones((4, 4), ml_dtypes.bfloat16)}, None)
    ingest(tmp_path / "store-run", store.path, replace_steps=True)
    with pytest.raises((StaleFitError, SelectionError)):
        save_figures(TrajectoryStore(store.path), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_drawing_leaves_the_global_state_of_matplotlib_alone(make_store, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figures(make_store(layers(1)), tmp_path / "figures")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, ckptlin.report; print('matplotlib' in sys.modules);"
        "from ckptlin.store.store import TrajectoryStore;"
        f"ckptlin.report.save_figures(TrajectoryStore({str(tmp_path / 'store')!r}), {str(tmp_path / 'o')!r});"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
