"""What operations and kernels know of a run: tensors, steps, and blocks of shape (steps, parameters).

Where the trajectories come from is a `TrajectorySource`; the trajectory store and the memory-mapped
checkpoints of a run both are one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ckptlin.dtypes import TensorDType

__all__ = ["Block", "TensorSpec", "TrajectorySource"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor of a model."""

    name: str
    dtype: TensorDType
    shape: tuple[int, ...]

    @property
    def num_params(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in one checkpoint."""
        return self.num_params * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of parameters that lie contiguously in one tensor (C order).

    Attributes
    ----------
    tensor : str
    start, stop : int
        Flat element range ``[start, stop)``.
    index : tuple of int
        Index of the chunk in the tensor's chunk grid, without the step axis.
    """

    tensor: str
    start: int
    stop: int
    index: tuple[int, ...]

    @property
    def num_params(self) -> int:
        """Number of elements."""
        return self.stop - self.start


class TrajectorySource(Protocol):
    """Where trajectories come from."""

    @property
    def location(self) -> str:
        """Path or URL, for messages and records."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps in ascending order."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor that is held, in file order."""
        ...

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that are another name's tensor: ``{"lm_head.weight": "model.embed_tokens.weight"}``."""
        ...

    def blocks(self, tensor: str) -> Sequence[Block]:
        """The tensor's blocks in ascending order; empty for a tensor without elements."""
        ...

    def read_block(self, block: Block, rows: Sequence[int]) -> np.ndarray[Any, Any]:
        """Read the rows (indices into `steps`) of a block.

        Returns
        -------
        numpy.ndarray
            Shape ``(len(rows), block.num_params)``, of the bits dtype, C-contiguous, the caller's own.
        """
        ...
