"""Figures: of a store, a backtest, an evaluation."""

from ckptlin.report.backtest_figure import check_figure_path, draw_backtest, save_figure
from ckptlin.report.evaluation_figure import ScoredModel, draw_evaluation
from ckptlin.report.figures import (
    FIGURE_FORMATS,
    draw_examples,
    draw_r2_by_layer,
    draw_r2_histogram,
    save_figures,
)

__all__ = [
    "FIGURE_FORMATS",
    "ScoredModel",
    "check_figure_path",
    "draw_backtest",
    "draw_evaluation",
    "draw_examples",
    "draw_r2_by_layer",
    "draw_r2_histogram",
    "save_figure",
    "save_figures",
]
