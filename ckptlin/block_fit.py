"""The part of a fit that runs wherever blocks are read: regression, maps, samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.block_gram import BlockGram, GramFigures
from ckptlin.checkpoints import RunTrajectories
from ckptlin.dtypes import from_zarr
from ckptlin.errors import NonFiniteError
from ckptlin.finite import require_finite
from ckptlin.kernels.narrow import narrow
from ckptlin.kernels.regression import SUM, Abscissa, BlockFit, BlockRegression
from ckptlin.naming import encode_name
from ckptlin.selection import row_groups
from ckptlin.store.chunk_codec import encode_plain
from ckptlin.store.files import StoreFiles
from ckptlin.store.metadata import MAP_COMPRESSOR
from ckptlin.store.store import TrajectoryStore, chunk_key
from ckptlin.trajectory import Block, thread_buffer

__all__ = ["BlockFigures", "BlockFitter"]


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """What a block adds to the figures of its tensor.

    Attributes
    ----------
    counts, sums, histogram : numpy.ndarray
        As in `ckptlin.kernels.regression.BlockFit`.
    sample : numpy.ndarray
        ``(num_steps, num_sampled)`` of the bits dtype: trajectories at even distances.
    gram : GramFigures or None
        What the block adds to the Gram matrix of its tensor, where that is asked for.
    """

    counts: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    histogram: np.ndarray[Any, Any]
    sample: np.ndarray[Any, Any]
    gram: GramFigures | None = None


class BlockFitter:
    """Fits batches of blocks and writes their maps: a small picklable task.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    rows : sequence of int
    maps : mapping of str to str
        Maps to write, and their zarr data types.
    files : StoreFiles or None
        The store that they go to; None writes none.
    prefix : str
        Where in the store.
    sample_size : int
        Trajectories to sample from each tensor.
    gram : BlockGram or None
        Multiplies the moves of the same blocks, whose rows are then read at once.
    """

    def __init__(
        self,
        *,
        source: TrajectoryStore | RunTrajectories,
        rows: Sequence[int],
        maps: Mapping[str, str],
        files: StoreFiles | None,
        prefix: str,
        sample_size: int,
        gram: BlockGram | None = None,
    ) -> None:
        self._source = source
        self._rows = tuple(rows)
        self._maps = dict(maps) if files is not None else {}
        self._files = files
        self._prefix = prefix
        self._sample_size = sample_size
        self._abscissa = Abscissa.of([source.steps[row] for row in rows])
        self._gram = gram
        self._groups = row_groups(source, rows) if gram is None else [list(rows)]

    def __call__(self, batch: Sequence[Block]) -> list[BlockFigures]:
        """Fit the blocks of a batch.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite, or its square too large for float64.
        """
        return [self._fit_block(block) for block in batch]

    def prefetch(self, batch: Sequence[Block]) -> None:
        """Tell the system that a batch will soon be read."""
        for block in batch:
            self._source.prefetch(block, self._rows)

    def map_keys(self, block: Block) -> dict[str, str]:
        """Return where in the store the maps of a block lie, by name."""
        tensor = encode_name(block.tensor)
        return {name: chunk_key(f"{self._prefix}/{name}/{tensor}", block.index) for name in self._maps}

    def _fit_block(self, block: Block) -> BlockFigures:
        result, trusted, sample, gram = self._regress(block, careful=False)
        if not trusted:
            require_finite(self._source, block, self._rows, way_out="the tensor with --exclude")
            result, trusted, _, gram = self._regress(block, careful=True)
        if not trusted:
            raise NonFiniteError(
                f"tensor `{block.tensor}` of {self._source.location} holds weights of about 1e150 or more, "
                "whose squares are too large for float64; leave it out with --exclude"
            )
        self._write_maps(block, result)
        return BlockFigures(result.counts, result.sums, result.histogram, sample, gram)

    def _regress(
        self, block: Block, *, careful: bool
    ) -> tuple[BlockFit, bool, np.ndarray[Any, Any], GramFigures | None]:
        spec = self._source.tensors[block.tensor]
        regression = BlockRegression(spec.dtype, self._abscissa, block.num_params, self._maps, careful=careful)
        share = -(-self._sample_size * block.num_params // spec.num_params)
        columns = np.linspace(0, block.num_params - 1, min(share, block.num_params)).astype(np.int64)
        if len(self._groups) == 1:
            bits = self._source.read_block(block, self._groups[0], thread_buffer())
            result, trusted = regression.fit(bits)
            gram = None
            if self._gram is not None and trusted:
                rounding = 0.0 if spec.dtype.zarr == "float64" else result.sums[SUM.rounding] / len(bits)
                gram = self._gram.of_bits(block, bits, rounding=float(rounding))
            return result, trusted, bits[:, columns], gram
        sampled = []
        for group in self._groups:
            bits = self._source.read_block(block, group, thread_buffer())
            sampled.append(bits[:, columns])
            regression.add(bits)
        result, trusted = regression.finish()
        return result, trusted, np.concatenate(sampled), None

    def _write_maps(self, block: Block, result: BlockFit) -> None:
        if self._files is None:
            return
        store = self._source
        assert isinstance(store, TrajectoryStore)  # noqa: S101 (maps are refused without a store)
        for name, key in self.map_keys(block).items():
            dtype = from_zarr(self._maps[name])
            padded = np.empty(store.chunk_params(block.tensor), dtype.numpy)
            narrow(getattr(result, name), dtype, padded[: block.num_params])
            padded[block.num_params :] = 0
            self._files.write_behind(key, encode_plain(padded.view(dtype.bits), MAP_COMPRESSOR))
