"""Sums of what blocks yield, over the blocks of each tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.block_gram import GramFigures, accumulate, increments
from ckptlin.gram_matrices import GramMatrices
from ckptlin.trajectory import Block, TensorSpec, TrajectorySource

__all__ = ["GramSums"]


class GramSums:
    """Adds the figures of blocks in the order in which these lie in their tensor, whenever they come.

    So the sums are the same to the last bit for any number of workers; figures that come early wait, and as
    blocks are worked on in order, those are few.

    Parameters
    ----------
    source : TrajectorySource
    tensors : sequence of TensorSpec
    rows : sequence of int
        Indices into the source's steps.
    known : GramMatrices or None
        Matrices of the first of these rows, to be extended.
    """

    def __init__(
        self,
        source: TrajectorySource,
        tensors: Sequence[TensorSpec],
        rows: Sequence[int],
        known: GramMatrices | None = None,
    ) -> None:
        self._source = source
        self._tensors = {t.name: t for t in tensors}
        self._steps = tuple(source.steps[row] for row in rows)
        self._known = known
        self._waiting: dict[Block, GramFigures] = {}
        self._num_added = dict.fromkeys(self._tensors, 0)
        self._moves: dict[str, np.ndarray[Any, Any]] = {}
        self._matrices: dict[str, np.ndarray[Any, Any]] = {}
        self._rounding = dict.fromkeys(self._tensors, 0.0)
        self._samples: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in self._tensors}

    def add(self, block: Block, figures: GramFigures) -> None:
        """Add the figures of a block; one at a time."""
        self._waiting[block] = figures
        name = block.tensor
        blocks = self._source.blocks(name)
        while self._num_added[name] < len(blocks):
            ready = self._waiting.pop(blocks[self._num_added[name]], None)
            if ready is None:
                return
            self._num_added[name] += 1
            if name in self._moves:
                self._moves[name] += ready.products
            else:
                self._moves[name] = ready.products
            self._rounding[name] += ready.rounding
            self._samples[name].append(ready.sample)
        self._matrices[name] = self._matrix(name, self._moves.pop(name))

    def result(self) -> GramMatrices:
        """Return the matrices, once all blocks have been added."""
        return GramMatrices(
            steps=self._steps,
            matrices={name: self._matrices[name] for name in self._tensors},
            num_params={name: spec.num_params for name, spec in self._tensors.items()},
            rounding=self._rounding,
            samples={
                name: np.concatenate(parts, axis=1).view(self._tensors[name].dtype.numpy)
                for name, parts in self._samples.items()
            },
        )

    def _matrix(self, name: str, moves: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._known is None:
            return accumulate(moves)
        num_known = len(self._known.steps)
        former = self._known.matrices[name]
        moves[: num_known - 1, : num_known - 1] = increments(former)
        matrix = accumulate(moves)
        matrix[:num_known, :num_known] = former
        return matrix
