import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.dtypes import from_zarr
from ckptlin.store.layout import TARGET_PARAMS, blocks_of, chunk_steps, param_chunk_shape
from ckptlin.trajectory import TensorSpec
from tests.strategies import shapes

F32 = from_zarr("float32")


@given(shapes(), st.integers(1, 200))
def test_blocks_divide_a_tensor_in_order_and_each_is_its_zarr_chunk(shape, target):
    spec = TensorSpec("w", F32, shape)
    chunk = param_chunk_shape(shape, target)
    elements = np.arange(spec.num_params).reshape(shape)
    position = 0
    for block in blocks_of(spec, chunk):
        assert block.start == position
        region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(block.index, chunk, strict=True))
        np.testing.assert_array_equal(elements[region].reshape(-1), np.arange(block.start, block.stop))
        position = block.stop
    assert position == spec.num_params


@given(shapes(), st.integers(1, 200))
def test_every_chunk_of_the_grid_is_a_block(shape, target):
    chunk = param_chunk_shape(shape, target)
    grid = [range(math.ceil(n / c)) for n, c in zip(shape, chunk, strict=True)]
    blocks = blocks_of(TensorSpec("w", F32, shape), chunk)
    assert len({block.index for block in blocks}) == len(blocks) == math.prod(map(len, grid))
    assert all(i in axis for block in blocks for i, axis in zip(block.index, grid, strict=True))


@given(shapes(max_side=3000), st.integers(1, 1 << 21))
def test_chunks_are_as_large_as_the_target_allows_and_waste_less_than_a_slice_each(shape, target):
    chunk = param_chunk_shape(shape, target)
    assert math.prod(chunk) <= target
    cut = [a for a, (n, c) in enumerate(zip(shape, chunk, strict=True)) if c < n]
    if not cut:
        assert math.prod(max(n, 1) for n in shape) == math.prod(chunk)
        return
    axis = cut[-1]
    inner = math.prod(chunk[axis + 1 :])
    fewest = math.ceil(shape[axis] / max(target // inner, 1))
    assert math.ceil(shape[axis] / chunk[axis]) == fewest
    assert chunk[axis] * fewest - shape[axis] < fewest
    assert all(c == 1 for c in chunk[:axis])


def test_the_default_chunk_holds_about_a_million_parameters():
    for shape in ((151936, 1536), (8960, 1536), (5_000_000,), (60, 1408, 2048)):
        assert TARGET_PARAMS / 2 < math.prod(param_chunk_shape(shape)) <= TARGET_PARAMS


def test_an_empty_tensor_has_no_blocks_and_a_scalar_has_one():
    assert blocks_of(TensorSpec("w", F32, (0, 4))) == ()
    (block,) = blocks_of(TensorSpec("w", F32, ()))
    assert (block.start, block.stop, block.index) == (0, 1, ())


@pytest.mark.parametrize("num_steps", [1, 11, 12, 13, 16, 17, 21, 33, 100, 1001])
def test_a_chunk_spans_the_12_to_16_steps_that_pad_least(num_steps):
    chosen = chunk_steps(num_steps)
    if num_steps < 12:
        assert chosen == 16
        return
    padding = {c: -num_steps % c for c in range(12, 17)}
    assert padding[chosen] == min(padding.values())
    assert chosen == max(c for c, rows in padding.items() if rows == padding[chosen])
