"""The regression of chunks that are still packed: a group of columns is unpacked, fitted, and forgotten.

The weights of a block never lie in memory as a whole, so what `ckptlin.kernels.bit_pack` writes and
`ckptlin.kernels.regression_tile` reads stays in the cache.  Figures and maps are those of the same rows
unpacked first, to the last bit.
"""

from collections.abc import Sequence
from typing import Any

import numba as nb
import numpy as np

from ckptlin.kernels.bit_pack import GROUP, sections_of, unpack_group, unpack_scratch
from ckptlin.kernels.regression_tile import TILE, add_tally, fit_tile, tile_scratch, tile_state

__all__ = ["fit_packed", "lay_out"]

# Words that a row of a tile is longer than its columns: its rows would all meet in the same lines of the cache.
_PADDING = 64
assert GROUP == TILE  # noqa: S101 (what is unpacked together is fitted together)


def lay_out(
    chunks: Sequence[np.ndarray[Any, Any]], shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Put what `bit_pack.pack` made of some chunks one behind the other.

    Parameters
    ----------
    chunks : sequence of numpy.ndarray
        uint8, one for each row of chunks.
    shape : tuple of int
        Of each chunk: steps and parameters.
    dtype : numpy.dtype
        Of the words.

    Returns
    -------
    data : numpy.ndarray
        uint8, at a multiple of 8 in memory; a single chunk is not copied if it lies so.
    sections : numpy.ndarray
        ``(num_chunks, 4) int64``: where widths, planes and exceptions begin, and where the exceptions end.

    Raises
    ------
    ValueError
        If a chunk's planes do not end where they could.
    """
    starts = np.cumsum([0, *(-(-chunk.size // 8) * 8 for chunk in chunks)])
    if len(chunks) == 1 and chunks[0].ctypes.data % 8 == 0:
        data = chunks[0]
    else:
        data = np.zeros(starts[-1] // 8, np.uint64).view(np.uint8)
        for start, chunk in zip(starts, chunks, strict=False):
            data[start : start + chunk.size] = chunk
    sections = []
    for start, chunk in zip(starts, chunks, strict=False):
        _, planes, extra = sections_of(data[start : start + chunk.size], shape, dtype)
        stop = start + chunk.size
        sections.append((start + 8, stop - extra.size - planes.nbytes, stop - extra.size, stop))
    return data, np.array(sections, np.int64)


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def fit_packed(
    data: Any,
    sections: Any,
    shape: tuple[int, int],
    order: Any,
    rows: tuple[int, int],
    num_params: int,
    columns: Any,
    sample: Any,
    x: Any,
    x_sums: Any,
    line: Any,
    element: Any,
    limits: Any,
    group: Any,
    figures: Any,
    histogram: Any,
    maps: Any,
) -> int:
    """Fit rows ``(start, stop)``, counted through all chunks, of the first ``num_params`` columns.

    Parameters
    ----------
    data, sections : numpy.ndarray
        As `lay_out` returns them.
    shape : tuple of int
        Steps and parameters of a chunk, padding included.
    order : tuple
        Kind, sign and top of `step_delta`.
    columns, sample : numpy.ndarray
        Columns in ascending order, and ``(stop - start, len(columns))`` words that they are copied to.
    x, ..., maps
        As `regression_tile.fit_tile` takes them; ``x`` of the rows alone.

    Returns
    -------
    int
        How many parameters cannot be trusted; −1 if a chunk holds something else than it should.
    """
    num_chunks = len(sections)
    chunk_rows, chunk_params = shape
    start, stop = rows
    tile = np.empty((num_chunks * chunk_rows, TILE + _PADDING), sample.dtype)
    tile_x = np.zeros(len(tile), x.dtype)
    tile_x[start:stop] = x
    cursors = np.zeros((num_chunks, 3), np.int64)
    unpacking = unpack_scratch(tile)
    state, scratch = tile_state(tile, group), tile_scratch(group)
    unsafe = 0
    num_sampled = 0
    for lo in range(0, chunk_params, TILE):
        size = min(TILE, chunk_params - lo)
        for k in range(num_chunks):
            first, second, third, last = sections[k]
            planes = data[second:third]
            parts = (data[first:second], planes.view(tile.dtype), planes.view(np.uint64), data[third:last])
            if not unpack_group(parts, cursors[k], order, unpacking, tile, k * chunk_rows, chunk_rows, 0, size):
                return -1
        n = min(size, num_params - lo)
        if n <= 0:
            continue
        unsafe += fit_tile(
            tile, rows, 0, n, tile_x, x_sums, line, element, limits, state, scratch, figures, maps, lo
        )
        while num_sampled < len(columns) and columns[num_sampled] < lo + n:
            for t in range(start, stop):
                sample[t - start, num_sampled] = tile[t, columns[num_sampled] - lo]
            num_sampled += 1
    for k in range(num_chunks):
        _, second, third, last = sections[k]
        if cursors[k, 1] * sample.itemsize != third - second or cursors[k, 2] != last - third:
            return -1
    add_tally(scratch[2], histogram)
    return unsafe
