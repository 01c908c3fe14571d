"""The refusal of NaN and infinity, where a number is needed."""

from collections.abc import Sequence

import numpy as np

from ckptlin.errors import NonFiniteError
from ckptlin.trajectory import Block, TrajectorySource

__all__ = ["require_finite"]


def require_finite(source: TrajectorySource, block: Block, rows: Sequence[int], *, way_out: str) -> None:
    """Raise if a weight of a block is NaN or infinite; reads the block again, row by row.

    Parameters
    ----------
    source : TrajectorySource
    block : Block
    rows : sequence of int
        Indices into the source's steps.
    way_out : str
        What to do about the tensor, besides leaving the step out.

    Raises
    ------
    NonFiniteError
        Names the tensor, the first such step, and how many such weights the whole tensor has there.
    """
    for row in rows:
        if not any(_count(source, block, row)):
            continue
        counts = [_count(source, part, row) for part in source.blocks(block.tensor)]
        num_nan, num_infinite = (sum(numbers) for numbers in zip(*counts, strict=True))
        counted = " and ".join(
            f"{number} {what}" for number, what in ((num_nan, "NaN"), (num_infinite, "infinite")) if number
        )
        weights = "weight" if num_nan + num_infinite == 1 else "weights"
        raise NonFiniteError(
            f"tensor `{block.tensor}` of {source.location} has {counted} {weights} at step "
            f"{source.steps[row]}; leave the step out with --steps, or {way_out}"
        )


def _count(source: TrajectorySource, block: Block, row: int) -> tuple[int, int]:
    """Count the NaN and the infinite weights of a block in one row."""
    values = source.read_block(block, [row]).view(source.tensors[block.tensor].dtype.numpy)
    num_nan = int(np.isnan(values).sum())
    return num_nan, int((~np.isfinite(values)).sum()) - num_nan
