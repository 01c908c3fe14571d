"""How a tensor's trajectory is cut into chunks and blocks.

A chunk spans up to 16 steps and about 2^20 parameters that lie contiguously in the checkpoint's file, so that
a reader touches one byte range a checkpoint and one chunk a block.
"""

import math
from collections.abc import Sequence
from itertools import product

from ckptlin.trajectory import Block, TensorSpec

__all__ = ["MAX_CHUNK_STEPS", "TARGET_PARAMS", "blocks_of", "chunk_steps", "param_chunk_shape"]

TARGET_PARAMS = 1 << 20
MAX_CHUNK_STEPS = 16
_MIN_CHUNK_STEPS = 12


def chunk_steps(num_steps: int) -> int:
    """Choose how many steps a chunk spans, for a store that begins with ``num_steps`` of them.

    Between 12 and 16: what pads the last row of chunks least.  Fewer would store an undifferenced row
    more often; with fewer than 12 steps at hand there are more to come, and it is 16.

    Examples
    --------
    >>> [chunk_steps(n) for n in (1, 11, 14, 16, 21, 50)]
    [16, 16, 14, 16, 12, 13]
    """
    if num_steps < _MIN_CHUNK_STEPS:
        return MAX_CHUNK_STEPS
    return min(range(MAX_CHUNK_STEPS, _MIN_CHUNK_STEPS - 1, -1), key=lambda c: math.ceil(num_steps / c) * c)


def param_chunk_shape(shape: Sequence[int], target: int = TARGET_PARAMS) -> tuple[int, ...]:
    """Choose a chunk's shape within a tensor: ``(1, …, k, full, …)``, balanced, at most ``target`` parameters.

    Examples
    --------
    >>> param_chunk_shape((151936, 1536)), param_chunk_shape((1536,)), param_chunk_shape(())
    ((682, 1536), (1536,), ())
    >>> param_chunk_shape((128, 768, 2048)), param_chunk_shape((3, 5_000_000)), param_chunk_shape((0, 4))
    ((1, 384, 2048), (1, 1000000), (1, 4))
    """
    chunk = [1] * len(shape)
    inner = 1
    for axis in range(len(shape) - 1, -1, -1):
        size = max(shape[axis], 1)
        if inner * size > target:
            most = max(target // inner, 1)
            chunk[axis] = math.ceil(size / math.ceil(size / most))
            break
        chunk[axis] = size
        inner *= size
    return tuple(chunk)


def blocks_of(spec: TensorSpec, chunk_shape: Sequence[int] | None = None) -> tuple[Block, ...]:
    """List a tensor's blocks in ascending order; each is what one chunk holds of every step.

    Examples
    --------
    >>> from ckptlin.dtypes import from_safetensors
    >>> blocks_of(TensorSpec("w", from_safetensors("F32"), (5, 2)), (2, 2))[-1]
    Block(tensor='w', start=8, stop=10, index=(2, 0))
    """
    shape = spec.shape
    if spec.num_params == 0:
        return ()
    chunk = tuple(chunk_shape) if chunk_shape is not None else param_chunk_shape(shape)
    if not shape:
        return (Block(spec.name, 0, 1, ()),)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # The axis that is cut: axes before it have chunks of 1, axes after it are whole.
    cut = next((a for a in range(len(shape)) if chunk[a] != 1 and shape[a] != 1), len(shape) - 1)
    blocks = []
    for index in product(*(range(math.ceil(n / c)) for n, c in zip(shape, chunk, strict=True))):
        start = sum(i * c * s for i, c, s in zip(index, chunk, strides, strict=True))
        length = min(chunk[cut], shape[cut] - index[cut] * chunk[cut]) * strides[cut]
        blocks.append(Block(spec.name, start, start + length, index))
    return tuple(blocks)
