"""Steps as an engine tells of them."""

from dataclasses import replace
from typing import Any

from ckptlin.rl.step_log import StepRow

__all__ = ["row_at"]

_FIRST = StepRow(
    step=0,
    virtual_step=0,
    updates=0,
    reward=0.1,
    reward_std=0.3,
    length=12.5,
    truncated=0.0,
    entropy=0.7,
    clip_share=0.01,
    kl_start=None,
    loss=1 / 3,
    grad_norm=0.25,
    lr=1e-6,
    tokens=0,
    tokens_per_s=512.0,
    elapsed_s=0.0,
)


def row_at(step: int, **changes: Any) -> StepRow:
    """Return a step of a run without jumps."""
    row = replace(
        _FIRST, step=step, virtual_step=step, updates=2 * step, tokens=100 * step, elapsed_s=0.1 * step
    )
    return replace(row, **changes)
