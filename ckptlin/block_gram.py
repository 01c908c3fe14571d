"""The part of a Gram pass that runs wherever blocks are read: inner products, rounding, samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.dtypes import TensorDType
from ckptlin.errors import NonFiniteError
from ckptlin.finite import require_finite
from ckptlin.kernels.gram import cross_products, products, rounding_of
from ckptlin.selection import row_groups
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block, thread_buffer

__all__ = ["BlockGram", "GramFigures", "accumulate", "increments", "strips_of"]

# A sum of float32 squares below this may have lost some of them to subnormals: an error of 7e-46 in each of up
# to 2^20 is then more than 1e-9 of it.
_SAFE_SQUARES = 1e-30
# Blocks of up to so many parameters are summed in float64: they take no time, and over few tiles the rounding
# of float32 does not average out.
_FEW_PARAMS = 1 << 14

# Tells of some of the moves, by number, whether any weight may have changed in one of them.
HasMoved = Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class GramFigures:
    """What a block adds to the Gram matrix of its tensor.

    Attributes
    ----------
    products : numpy.ndarray
        ``(T − 1, T − 1) float64``: inner products of the moves between neighbouring steps; those of two moves
        before the first new step are not filled in.
    rounding : float
        Σ ulp²/12 over the parameters that moved.
    sample : numpy.ndarray
        ``(T, n)`` of the bits dtype.
    """

    products: np.ndarray[Any, Any]
    rounding: float
    sample: np.ndarray[Any, Any]


def accumulate(moves: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn the products of moves into a Gram matrix relative to the first step.

    w_t − w_1 is the sum of the moves before t, so G is the running sum of H over both axes.

    Parameters
    ----------
    moves : (T − 1, T − 1) float64

    Returns
    -------
    numpy.ndarray
        ``(T, T) float64``, symmetric, first row and column zero.

    Examples
    --------
    >>> import numpy as np
    >>> accumulate(np.array([[1.0, 2.0], [2.0, 9.0]])).tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 3.0, 14.0]]
    """
    num_steps = len(moves) + 1
    gram = np.zeros((num_steps, num_steps))
    gram[1:, 1:] = np.triu(np.cumsum(np.cumsum(moves, axis=0), axis=1))
    return gram + np.triu(gram, 1).T


def increments(gram: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Undo `accumulate`: the inner products of the moves between neighbouring steps."""
    return np.diff(np.diff(gram, axis=0), axis=1)


def strips_of(num_groups: int, num_held: int) -> list[tuple[int, int]]:
    """Cut groups of rows into strips that are held in memory one after the other, from the last backwards.

    Examples
    --------
    >>> strips_of(5, 2), strips_of(3, 8)
    ([(3, 5), (1, 3), (0, 1)], [(0, 3)])
    """
    return [(max(hi - num_held, 0), hi) for hi in range(num_groups, 0, -num_held)]


class BlockGram:
    """Multiplies the moves of batches of blocks: a small picklable task.

    A block's rows are read at once where memory allows it.  Else a strip of them is held, a few groups of rows
    that are read together, while the groups before it are read one after the other, latest first; then the next
    strip is held.  Which way makes no difference to the result, not in the last bit.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    rows : sequence of int
    num_known : int
        So many of the first rows had their products taken before; 0 if none.
    num_held : int
        Groups of rows in a strip.
    sample_size : int
        Trajectories to sample from each tensor.
    """

    def __init__(
        self,
        *,
        source: TrajectoryStore | RunTrajectories,
        rows: Sequence[int],
        num_known: int,
        num_held: int,
        sample_size: int,
    ) -> None:
        self._source = source
        self._rows = tuple(rows)
        self._num_known = num_known
        self._sample_size = sample_size
        self._groups = row_groups(source, rows)
        # Where in `rows` each group begins.
        self._starts = [0, *np.cumsum([len(group) for group in self._groups]).tolist()]
        self._strips = strips_of(len(self._groups), num_held)

    def __call__(self, batch: Sequence[Block]) -> list[GramFigures]:
        """Multiply the moves of the blocks of a batch.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite, or the square of a move too large for float64.
        """
        return [self._of_block(block) for block in batch]

    def prefetch(self, batch: Sequence[Block]) -> None:
        """Tell the system that a batch will soon be read."""
        for block in batch:
            lo, hi = self._strips[0]
            self._source.prefetch(block, [row for group in self._groups[lo:hi] for row in group])

    def of_bits(
        self, block: Block, bits: np.ndarray[Any, Any], *, rounding: float | None = None
    ) -> GramFigures:
        """Multiply the moves of a block of which all rows are in memory, ``(T, num_params)`` of the bits dtype.

        Whoever knows what rounding adds, as a regression of the same block does, spares a look at what moved.

        Raises
        ------
        NonFiniteError
            As the call.
        """
        return self._carefully(block, lambda real: self._whole(block, bits, real, rounding))

    def _of_block(self, block: Block) -> GramFigures:
        if len(self._strips) > 1:
            return self._carefully(block, lambda real: self._in_strips(block, real))
        return self.of_bits(block, self._source.read_block(block, self._rows, thread_buffer()))

    def _carefully(
        self, block: Block, multiply: Callable[[type[np.floating[Any]]], tuple[GramFigures, HasMoved]]
    ) -> GramFigures:
        """Sum in float32, and in float64 where that cannot be trusted or costs nothing."""
        is_wide = self._dtype(block).zarr == "float64" or block.num_params <= _FEW_PARAMS
        reals: tuple[type[np.floating[Any]], ...] = (np.float64,) if is_wide else (np.float32, np.float64)
        for real in reals:
            figures, has_moved = multiply(real)
            if not np.isfinite(figures.products).all():
                require_finite(self._source, block, self._rows, way_out="the tensor with --exclude")
                continue
            small = np.flatnonzero(np.diag(figures.products) < _SAFE_SQUARES)
            small = small[small >= self._first_new]
            if real is reals[-1] or not small.size or not has_moved(small.tolist()):
                return figures
        raise NonFiniteError(
            f"tensor `{block.tensor}` of {self._source.location} moves by about 1e150 or more, whose square is "
            "too large for float64; leave it out with --exclude"
        )

    def _whole(
        self,
        block: Block,
        bits: np.ndarray[Any, Any],
        real: type[np.floating[Any]],
        rounding: float | None,
    ) -> tuple[GramFigures, HasMoved]:
        dtype = self._dtype(block)
        path = np.zeros(block.num_params if rounding is None else 0, real)
        moves = products(bits, None, dtype, path, first=self._first_new)
        if rounding is None:
            rounding = rounding_of(bits[0], path, dtype)

        def has_moved(numbers: Sequence[int]) -> bool:
            return any((bits[t + 1] != bits[t]).any() for t in numbers)

        return GramFigures(moves, rounding, bits[:, self._columns(block)]), has_moved

    def _in_strips(self, block: Block, real: type[np.floating[Any]]) -> tuple[GramFigures, HasMoved]:
        dtype = self._dtype(block)
        path = np.zeros(block.num_params, real)
        columns = self._columns(block)
        sample = np.empty((len(self._rows), columns.size), dtype.bits)
        first_row = np.empty(0, dtype.bits)
        num_moves = len(self._rows) - 1
        moves = np.zeros((num_moves, num_moves))
        after: np.ndarray[Any, Any] | None = None  # the row that follows the strip
        for number, (first_group, last_group) in enumerate(self._strips):
            lo, hi = self._starts[first_group], self._starts[last_group]
            if hi < self._num_known:
                break
            held = self._source.read_block(block, self._rows[lo:hi])
            is_first = number == 0  # it sees every row, and the others need not look again
            end = min(hi, num_moves)
            moves[lo:end, lo:end] = products(
                held, after, dtype, path if is_first else path[:0], first=max(self._first_new - lo, 0)
            )
            if is_first:
                sample[lo:hi] = held[:, columns]
                first_row = held[0].copy()
            following = held[0]
            for group in range(first_group - 1, -1, -1):
                left, right = self._starts[group], self._starts[group + 1]
                bits = self._source.read_block(block, self._groups[group], thread_buffer())
                crossed = cross_products(held, after, bits, following, dtype, real)
                moves[lo:end, left:right] = crossed
                moves[left:right, lo:end] = crossed.T
                if is_first:
                    products(bits, following, dtype, path, first=num_moves)
                    sample[left:right] = bits[:, columns]
                    first_row = bits[0].copy()
                following = bits[0].copy()
            after = held[0].copy()
        # Which of the moves that was is not known any more: a frozen tensor is told from others, at least.
        return GramFigures(moves, rounding_of(first_row, path, dtype), sample), lambda _: bool(path.any())

    @property
    def _first_new(self) -> int:
        """The first move that ends at a new step."""
        return max(self._num_known - 1, 0)

    def _dtype(self, block: Block) -> TensorDType:
        return self._source.tensors[block.tensor].dtype

    def _columns(self, block: Block) -> np.ndarray[Any, Any]:
        """Return which of the tensor's sampled parameters lie in a block, as columns of it."""
        num_params = self._source.tensors[block.tensor].num_params
        size = min(self._sample_size, num_params)
        positions = np.linspace(0, num_params - 1, size).astype(np.int64)
        return positions[(positions >= block.start) & (positions < block.stop)] - block.start
