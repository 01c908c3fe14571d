import numpy as np
import pytest

from ckptlin.report import ScoredModel, draw_evaluation, save_figure


def scored(step, value, method=None, label=None):
    figures = {"avg@4": (value, value - 0.02, value + 0.03), "pass@4": (value + 0.2, value + 0.1, value + 0.25)}
    return ScoredModel(label or f"step-{step}", step, method, figures)


MODELS = [scored(0, 0.4), scored(100, 0.5), scored(200, 0.55), scored(300, 0.6, "two-point")]


def markers(axes, marker):
    return [line for line in axes.lines if line.get_marker() == marker]


def test_trained_models_are_a_line_and_extrapolated_ones_open_diamonds():
    (axes,) = draw_evaluation(MODELS, title="t").axes
    first, second = markers(axes, "o")
    np.testing.assert_allclose(first.get_xydata(), [(0, 0.4), (100, 0.5), (200, 0.55)])
    np.testing.assert_allclose(second.get_ydata(), [0.6, 0.7, 0.75])
    assert first.get_linestyle() == "-"
    diamond = markers(axes, "D")[0]
    np.testing.assert_allclose(diamond.get_xydata(), [(300, 0.6)])
    assert (diamond.get_linestyle(), diamond.get_markerfacecolor()) == ("None", "white")
    assert "two-point" in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["avg@4", "pass@4", "extrapolated"]


def test_intervals_are_where_they_are_said_to_be():
    (axes,) = draw_evaluation(MODELS, title="t").axes
    segments = axes.collections[0].get_segments()
    np.testing.assert_allclose(
        [segment[:, 1] for segment in segments], [(0.38, 0.43), (0.48, 0.53), (0.53, 0.58)]
    )


def test_models_without_steps_stand_in_a_row_by_their_labels():
    models = [scored(None, 0.4, label="a"), scored(7, 0.5, label="b")]
    (axes,) = draw_evaluation(models, title="t").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    assert markers(axes, "o")[0].get_linestyle() == "None"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_one_model_alone_can_be_drawn_and_saved(tmp_path, suffix):
    save_figure(draw_evaluation([scored(0, 0.0)], title="t", lines=["l"]), tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").stat().st_size > 1000
