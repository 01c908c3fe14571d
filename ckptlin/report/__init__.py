"""Figures: of a store, a backtest, an evaluation, of what models put out."""

from ckptlin.report.activation_figures import LayerR2, PartShares, draw_decomposition, draw_layer_r2
from ckptlin.report.backtest_figure import check_figure_path, draw_backtest, save_figure
from ckptlin.report.evaluation_figure import ScoredModel, draw_evaluation
from ckptlin.report.figures import (
    FIGURE_FORMATS,
    draw_examples,
    draw_r2_by_layer,
    draw_r2_histogram,
    save_figures,
)
from ckptlin.report.token_figures import (
    MovingToken,
    TokenPopulation,
    draw_moving_tokens,
    draw_token_histogram,
)

__all__ = [
    "FIGURE_FORMATS",
    "LayerR2",
    "MovingToken",
    "PartShares",
    "ScoredModel",
    "TokenPopulation",
    "check_figure_path",
    "draw_backtest",
    "draw_decomposition",
    "draw_evaluation",
    "draw_examples",
    "draw_layer_r2",
    "draw_moving_tokens",
    "draw_r2_by_layer",
    "draw_r2_histogram",
    "draw_token_histogram",
    "save_figure",
    "save_figures",
]
