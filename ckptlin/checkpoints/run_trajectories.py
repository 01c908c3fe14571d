"""Trajectories read from the checkpoints of a run themselves, for a single look without a store."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.checkpoints.base import Checkpoint
from ckptlin.checkpoints.consistency import check_consistent
from ckptlin.checkpoints.run import DiscoverArguments, Run, SkippedCheckpoint, StepCheckpoint, discover
from ckptlin.errors import CheckpointError, SelectionError
from ckptlin.segments import Jump, jumps_among
from ckptlin.trajectory import Block, Buffer, TensorSpec

__all__ = ["RunTrajectories"]


Partition = Callable[[TensorSpec], Sequence[Block]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a copy of `RunTrajectories` in another process is to find, and how."""

    location: str
    arguments: DiscoverArguments
    steps: tuple[int, ...]
    jumps: tuple[Jump, ...]
    states: tuple[str, ...]  # of each checkpoint's files


class RunTrajectories:
    """A run's checkpoints as a `TrajectorySource`.

    Pickled, it carries the arguments that found the run, not the weights: the copy looks for the same
    checkpoints when it is first used, and raises `CheckpointError` if they have changed since.

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

    def __init__(self, run: Run, *, partition: Partition) -> None:
        check_consistent(run.checkpoints)
        states = tuple(_state(item) for item in run.checkpoints)
        jumps = jumps_among(run.steps, run.jumps)
        self._init(_Opened(run.location, run.arguments, run.steps, jumps, states), run, partition)

    def _init(self, opened: _Opened, run: Run | None, partition: Partition) -> None:
        self._opened = opened
        self._found = run
        self._partition = partition
        self._blocks: dict[str, tuple[Block, ...]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self._opened, self._partition)

    def __repr__(self) -> str:
        return f"RunTrajectories({self.location!r}, {len(self.steps)} steps, {len(self.tensors)} tensors)"

    @property
    def location(self) -> str:
        """Where the run lies."""
        return self._opened.location

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps in ascending order."""
        return self._opened.steps

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """Jumps among the steps, as they were recorded when the run was opened."""
        return self._opened.jumps

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
            self._checkpoint(row).read_into(block.tensor, block.start, out[i])
        return out

    def prefetch(self, block: Block, rows: Sequence[int]) -> None:
        """Hint that `read_block` is called with the same arguments soon."""
        for row in rows:
            self._checkpoint(row).prefetch(block.tensor, block.start, block.num_params)

    def close(self) -> None:
        """Close the checkpoints' files."""
        if self._found is not None:
            self._found.close()

    @property
    def _run(self) -> Run:
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = _find_again(self._opened)
        return self._found

    def _checkpoint(self, row: int) -> Checkpoint:
        if not 0 <= row < len(self.steps):
            raise SelectionError(f"row {row} does not exist: {self.location} has {len(self.steps)} steps")
        return self._run.checkpoints[row].checkpoint

    def _spec(self, tensor: str) -> TensorSpec:
        try:
            return self.tensors[tensor]
        except KeyError:
            raise SelectionError(f"{self.location} has no tensor `{tensor}`") from None


def _unpickle(cls: type[RunTrajectories], opened: _Opened, partition: Partition) -> RunTrajectories:
    self = cls.__new__(cls)
    self._init(opened, None, partition)
    return self


def _find_again(opened: _Opened) -> Run:
    items, base, skip_incomplete = opened.arguments
    run = discover(items, base=base, skip_incomplete=skip_incomplete)
    try:
        if run.steps != opened.steps:
            steps = sorted(set(run.steps) ^ set(opened.steps))
            raise CheckpointError(
                f"{opened.location} has changed since it was opened: step {steps[0]} is "
                f"{'new' if steps[0] in run.steps else 'gone'}; run the command again"
            )
        for item, state in zip(run.checkpoints, opened.states, strict=True):
            if _state(item) != state:
                raise CheckpointError(
                    f"checkpoint step {item.step} ({item.path}) has changed since it was opened; "
                    "wait until the trainer has saved it, then run the command again"
                )
        check_consistent(run.checkpoints)
    except BaseException:
        run.close()
        raise
    return run


def _state(item: StepCheckpoint) -> str:
    """Hash what tells a version of a checkpoint's files from another."""
    files = [(file.name, file.num_bytes, file.mtime_ns) for file in item.checkpoint.files]
    return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()
