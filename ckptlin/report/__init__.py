"""Figures of a store."""

from ckptlin.report.figures import (
    FIGURE_FORMATS,
    draw_examples,
    draw_r2_by_layer,
    draw_r2_histogram,
    save_figures,
)

__all__ = ["FIGURE_FORMATS", "draw_examples", "draw_r2_by_layer", "draw_r2_histogram", "save_figures"]
