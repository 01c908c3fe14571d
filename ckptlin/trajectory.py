"""What operations and kernels know of a run: tensors, steps, and blocks of shape (steps, parameters).

Where the trajectories come from is a `TrajectorySource`; the trajectory store and the memory-mapped
checkpoints of a run both are one.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ckptlin.dtypes import TensorDType
from ckptlin.segments import Jump

__all__ = ["Block", "Buffer", "TensorSpec", "TrajectorySource", "thread_buffer"]


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


class Buffer:
    """Memory that one block after another is read into: fresh pages cost as much time as decoding a chunk."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an uninitialised array, which is the caller's until the next call."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._bytes.size < num_bytes:
            self._bytes = np.empty(0, np.uint8)  # the old memory goes before the new comes
            self._bytes = np.empty(num_bytes, np.uint8)
        array: np.ndarray[Any, Any] = self._bytes[:num_bytes].view(dtype).reshape(shape)
        return array


_of_thread = threading.local()


def thread_buffer() -> Buffer:
    """Return the buffer of this thread; it lives as long as the thread does."""
    if not hasattr(_of_thread, "buffer"):
        _of_thread.buffer = Buffer()
    buffer: Buffer = _of_thread.buffer
    return buffer


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
    def jumps(self) -> tuple[Jump, ...]:
        """Where training was skipped by extrapolation, among the steps; ascending."""
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

    def read_block(
        self, block: Block, rows: Sequence[int], buffer: Buffer | None = None
    ) -> np.ndarray[Any, Any]:
        """Read the rows (indices into `steps`) of a block.

        Returns
        -------
        numpy.ndarray
            Shape ``(len(rows), block.num_params)``, of the bits dtype, C-contiguous; the caller's own, or in
            ``buffer`` and so gone with the next use of that.
        """
        ...

    def prefetch(self, block: Block, rows: Sequence[int]) -> None:
        """Tell the system that a block will soon be read; does nothing where that means nothing."""
        ...
