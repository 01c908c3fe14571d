from itertools import pairwise

import numpy as np
import pytest

from ckptlin.backtest import backtest
from ckptlin.errors import InputError
from ckptlin.report import FIGURE_FORMATS, check_figure_path, draw_backtest, save_figure
from ckptlin.report.style import BLUE, VERMILION
from tests.grams import grams_of


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    steps = np.arange(14) * 10
    drift = np.outer(steps, rng.normal(size=300)) / 130
    return backtest(grams_of(steps, {"model.w": drift + 0.1 * rng.normal(size=drift.shape).cumsum(axis=0)}))


def texts(figure):
    (axes,) = figure.axes
    return [text.get_text().strip() for text in [*figure.texts, *axes.texts]]


def test_auto_and_two_point_are_lines_of_their_own_colour_with_their_spread(result):
    (axes,) = draw_backtest(result).axes
    lines = {line.get_color(): line for line in axes.lines}
    for method, colour in (("auto", BLUE), ("two-point", VERMILION)):
        x, y = lines[colour].get_data()
        found = [result.figures_within(method, at / 2**0.125, at * 2**0.125).mean for at in x]
        np.testing.assert_allclose(y, found)
    assert len(axes.collections) == 2


def test_every_method_but_the_baseline_is_named_once(result):
    figure = draw_backtest(result, name="a $run$")
    named = texts(figure)
    below = figure.get_supxlabel().partition(": ")[2].split(", ")
    for method in result.names:
        count = named.count(method) + below.count(method)
        assert count == (method != "persistence"), method
    assert "a $run$ · 14 steps, 0 to 130" in named
    assert "what rounding allows" in named


def test_names_at_the_right_do_not_overlap(result):
    figure = draw_backtest(result)
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in axes.texts if t.get_text() in result.names]
    assert len(boxes) > 5
    ordered = sorted(boxes, key=lambda box: box.y0)
    for lower, upper in pairwise(ordered):
        assert lower.y1 <= upper.y0 + 2


def test_the_last_checkpoint_is_within_the_figure_however_good_all_are():
    steps = np.arange(10) * 10
    line = np.outer(steps, np.random.default_rng(0).normal(size=50))
    (axes,) = draw_backtest(backtest(grams_of(steps, {"w": line}), ["ols", "two-point", "damped"])).axes
    low, high = axes.get_ylim()
    assert low < 0 < 1 < high


def test_a_backtest_without_horizons_says_so():
    steps = [0, 100, 101, 102]
    weights = np.random.default_rng(0).normal(size=(4, 20))
    figure = draw_backtest(backtest(grams_of(steps, {"w": weights})))
    assert "no checkpoint lies far enough ahead of another" in texts(figure)


@pytest.mark.parametrize("file_format", FIGURE_FORMATS)
def test_a_figure_is_written_in_the_format_of_its_name(result, tmp_path, file_format):
    path = tmp_path / f"skill.{file_format}"
    save_figure(draw_backtest(result), path)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[file_format]
    assert path.read_bytes().startswith(start)


def test_another_format_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be written to .*skill\.gif; let its name end in one of \.png"
    ):
        check_figure_path(tmp_path / "skill.gif")
