"""The part of a rank1-matrix extrapolation that runs wherever blocks are read: whole tensors at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ckptlin.block_extrapolate import BlockPredictor, Losses, PredictionItem
from ckptlin.checkpoints import RunTrajectories
from ckptlin.rank_one import find_update
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block

__all__ = ["RankOnePredictor", "RankOneStep", "tensor_batches"]

# Tensors that share a task: as many as a large block has parameters.
_BATCH_PARAMS = 1 << 20


@dataclass(frozen=True, slots=True)
class RankOneStep:
    """What ``rank1-matrix`` adds to a checkpoint.

    Attributes
    ----------
    rows : (int, int)
        Rows of the source whose difference is the update.
    factor : float
        What the first component is added with.
    held_bytes : int
        The largest matrix, both checkpoints of it, that is held in memory.
    """

    rows: tuple[int, int]
    factor: float
    held_bytes: int


class RankOnePredictor:
    """Predicts whole tensors: finds the component of each matrix, then adds it block by block.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    step : RankOneStep
    predictor : BlockPredictor
        Predicts what the component is added to, and writes.
    """

    def __init__(
        self, source: TrajectoryStore | RunTrajectories, step: RankOneStep, predictor: BlockPredictor
    ) -> None:
        self._source = source
        self._step = step
        self._predictor = predictor

    def __call__(self, batch: Sequence[PredictionItem]) -> list[Losses]:
        """Predict and write all blocks of some tensors, each tensor's side by side.

        Raises
        ------
        NonFiniteError
            As `BlockPredictor`.
        """
        losses = []
        for tensor, items in groupby(batch, lambda item: item.block.tensor):
            blocks = list(items)
            update = None
            if blocks[0].is_extrapolated:
                update = find_update(
                    self._source,
                    self._source.tensors[tensor],
                    self._step.rows,
                    self._step.factor,
                    self._step.held_bytes,
                )
            for number, item in enumerate(blocks):
                found = self._predictor.predict(item, update)
                if update is not None and number == 0:
                    found = found._replace(num_unconverged=update.num_unconverged)
                losses.append(found)
        return losses

    def prefetch(self, batch: Sequence[PredictionItem]) -> None:
        """Tell the system that a batch will soon be read."""
        self._predictor.prefetch(batch)


def tensor_batches(blocks: Iterable[Block]) -> list[tuple[Block, ...]]:
    """Group blocks so that a tensor's stay together, small tensors several at a time."""
    groups: list[list[Block]] = []
    size = _BATCH_PARAMS
    for _, of_tensor in groupby(blocks, lambda block: block.tensor):
        listed = list(of_tensor)
        num_params = sum(block.num_params for block in listed)
        if size + num_params > _BATCH_PARAMS:
            groups.append([])
            size = 0
        groups[-1] += listed
        size += num_params
    return [tuple(group) for group in groups]
