import numpy as np
import pytest

from ckptlin.report import LayerR2, PartShares, draw_decomposition, draw_layer_r2, save_figure
from ckptlin.summary import NUM_BINS, R2Figures


def figures(value):
    histogram = np.zeros(NUM_BINS)
    if value is not None:
        histogram[int(value * NUM_BINS)] = 10
    return R2Figures.of(histogram, 5, 1, None)


LAYERS = [
    LayerR2("embedding", 0.9, figures(0.92), figures(0.4)),
    LayerR2("block 0", None, figures(None), figures(None)),
    LayerR2("norm", 0.7, figures(0.75), figures(0.45)),
]
BARS = [PartShares("a", (0.8, 0.3, -0.1), (0.5, 0.5, 0.0)), PartShares("b", None, None)]


def test_means_stand_over_their_layers_and_the_null_beside_them():
    (axes,) = draw_layer_r2(LAYERS, title="t", lines=["l"]).axes
    dots = [
        tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert dots == [(0, 0.9), (2, 0.7)]
    medians = [
        line.get_ydata()[0] for line in axes.lines if line.get_color() == "#D55E00" and len(line.get_xdata())
    ]
    np.testing.assert_allclose(medians, [0.4, 0.45], atol=0.002)
    assert [text.get_text() for text in axes.texts] == ["unchanged"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["embedding", "block 0", "norm"]


def test_shares_are_stacked_and_negative_ones_hang_below():
    left, right = draw_decomposition(BARS, BARS[:1], title="t").axes
    for axes in (left, right):
        found = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in axes.patches if bar.get_height()]
        own = [(bottom, height) for x, bottom, height in found if x < -0.2]
        np.testing.assert_allclose(own, [(0, 0.8), (0.8, 0.3), (0, -0.1)])
        null = [(bottom, height) for x, bottom, height in found if x > -0.2]
        np.testing.assert_allclose(null, [(0, 0.5), (0.5, 0.5)])
    low, high = left.get_ylim()
    assert low < -0.1
    assert high > 1.1
    assert [text.get_text() for text in left.texts] == ["unchanged"]


@pytest.mark.parametrize("count", [1, 130])
def test_any_number_of_layers_can_be_drawn(count, tmp_path):
    save_figure(draw_layer_r2(LAYERS[:1] * count, title="t"), tmp_path / "a.png")
    save_figure(draw_decomposition(BARS[:1] * count, BARS, title="t", lines=["l"]), tmp_path / "b.svg")
    assert min((tmp_path / name).stat().st_size for name in ("a.png", "b.svg")) > 1000
