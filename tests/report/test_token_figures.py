"""Figures of log-probabilities: what is drawn is what was found, and nothing is read as mathematics."""

import numpy as np

from ckptlin.report import MovingToken, TokenPopulation, draw_moving_tokens, draw_token_histogram
from ckptlin.report.figures import encode_figure
from ckptlin.summary import R2Figures


def population(name, r2):
    histogram = np.bincount((np.array(r2) * 1000).astype(int), minlength=1000).astype(float)
    above = (float((np.array(r2) > limit).sum()) for limit in (0.7, 0.9))
    figures = R2Figures.of(histogram, *above, None)
    return TokenPopulation(name, figures, figures, histogram, histogram)


def test_both_populations_have_a_panel_and_an_empty_one_says_so():
    filled = population("all that moved", [0.1, 0.8, 0.81, 0.95])
    empty = population("far", [])
    figure = draw_token_histogram([filled, empty], num_tokens=8, title="R²", lines=["$x$"])
    first, second = figure.axes
    assert first.get_title(loc="left") == "all that moved: 4 of 8 tokens (50%)"
    bars = first.patches[0].get_data().values
    np.testing.assert_allclose(bars.sum(), 100)
    assert bars[40] == 50
    assert "75% above 0.7" in first.get_legend().get_texts()[0].get_text()
    assert [text.get_text() for text in second.texts] == ["no such token"]
    assert encode_figure(figure, "png")


def test_trajectories_have_their_lines_and_their_text():
    tokens = [MovingToken("1+$1", "\n", (-1.0, -2.0, -3.5), -0.12, -1.0, 0.9)]
    figure = draw_moving_tokens(tokens, tokens, steps=(0, 10, 20), title="t")
    axes = figure.axes[0]
    line, points = axes.lines
    np.testing.assert_allclose(line.get_ydata(), [-1.0, -2.2, -3.4])
    np.testing.assert_allclose(points.get_ydata(), [-1.0, -2.0, -3.5])
    assert axes.get_title(loc="left") == "…1+$1 ▸ '\\n'\nR² = 0.90"
    assert encode_figure(figure, "png")
    assert encode_figure(draw_moving_tokens([], [], steps=(0, 1), title="none"), "png")
