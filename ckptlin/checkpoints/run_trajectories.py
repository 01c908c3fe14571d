"""Trajectories read from the checkpoints of a run themselves, for a single look without a store."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ckptlin.checkpoints.consistency import check_consistent
from ckptlin.checkpoints.run import Run, SkippedCheckpoint, StepCheckpoint
from ckptlin.errors import SelectionError
from ckptlin.trajectory import Block, Buffer, TensorSpec

__all__ = ["RunTrajectories"]


class RunTrajectories:
    """A run's checkpoints as a `TrajectorySource`.

    Parameters
    ----------
    run : Run
    partition : callable
        Divides a tensor into blocks, such as ``ckptlin.store.layout.blocks_of``.

    Raises
    ------
    CheckpointMismatchError
        If the checkpoints do not have the same tensors.
    """

    def __init__(self, run: Run, *, partition: Callable[[TensorSpec], Sequence[Block]]) -> None:
        check_consistent(run.checkpoints)
        self._run = run
        self._partition = partition
        self._blocks: dict[str, tuple[Block, ...]] = {}

    def __repr__(self) -> str:
        return f"RunTrajectories({self.location!r}, {len(self.steps)} steps, {len(self.tensors)} tensors)"

    @property
    def location(self) -> str:
        """Where the run lies."""
        return self._run.location

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps in ascending order."""
        return self._run.steps

    @property
    def checkpoints(self) -> tuple[StepCheckpoint, ...]:
        """The checkpoints themselves, in the order of `steps`."""
        return self._run.checkpoints

    @property
    def skipped(self) -> tuple[SkippedCheckpoint, ...]:
        """Incomplete checkpoints that were left out on request."""
        return self._run.skipped

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the file order of the first checkpoint."""
        return self._run.checkpoints[0].checkpoint.tensors

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that are another name's tensor, as the first checkpoint has it."""
        return self._run.checkpoints[0].checkpoint.tied

    def blocks(self, tensor: str) -> Sequence[Block]:
        """The tensor's blocks in ascending order.

        Raises
        ------
        SelectionError
            If there is no such tensor.
        """
        if tensor not in self._blocks:
            self._blocks[tensor] = tuple(self._partition(self._spec(tensor)))
        return self._blocks[tensor]

    def read_block(
        self, block: Block, rows: Sequence[int], buffer: Buffer | None = None
    ) -> np.ndarray[Any, Any]:
        """Read a block of some checkpoints, each with one positional read.

        Parameters
        ----------
        block : Block
        rows : sequence of int
            Indices into `steps`, in any order.
        buffer : Buffer, optional
            Where the block is to lie; default an array of its own.

        Returns
        -------
        numpy.ndarray
            Shape ``(len(rows), block.num_params)``, of the bits dtype.

        Raises
        ------
        SelectionError
            If there is no such tensor or row.
        InputError
            If the block reaches beyond the tensor.
        IncompleteCheckpointError
            If a file has become shorter.
        """
        shape, dtype = (len(rows), block.num_params), self._spec(block.tensor).dtype.bits
        out = np.empty(shape, dtype) if buffer is None else buffer.array(shape, dtype)
        for i, row in enumerate(rows):
            if not 0 <= row < len(self.steps):
                raise SelectionError(f"row {row} does not exist: {self.location} has {len(self.steps)} steps")
            self._run.checkpoints[row].checkpoint.read_into(block.tensor, block.start, out[i])
        return out

    def prefetch(self, block: Block, rows: Sequence[int]) -> None:
        """Tell the system that a block of some checkpoints will soon be read."""
        for row in rows:
            self._run.checkpoints[row].checkpoint.prefetch(block.tensor, block.start, block.num_params)

    def close(self) -> None:
        """Close the checkpoints' files."""
        self._run.close()

    def _spec(self, tensor: str) -> TensorSpec:
        try:
            return self.tensors[tensor]
        except KeyError:
            raise SelectionError(f"{self.location} has no tensor `{tensor}`") from None
