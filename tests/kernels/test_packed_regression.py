"""The regression of packed chunks is that of the same rows unpacked first, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.kernels.bit_pack import GROUP, pack
from ckptlin.kernels.packed_regression import lay_out
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.step_delta import FLOAT
from tests.strategies import FITTED, moving_weights, training_steps

MAPS = ("r2", "slope", "intercept")


def packed(bits, chunk_rows, chunk_params):
    """Cut bits into chunks of some rows each, the last one padded with zeros, and pack them."""
    num_rows, num_params = bits.shape
    chunks = []
    for lo in range(0, num_rows, chunk_rows):
        chunk = np.zeros((chunk_rows, chunk_params), bits.dtype)
        part = bits[lo : lo + chunk_rows]
        chunk[: len(part), :num_params] = part
        chunks.append(np.frombuffer(b"".join(pack(chunk, FLOAT)), np.uint8))
    return chunks


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=25)
@given(data=st.data())
def test_any_window_of_any_chunks_is_fitted_as_if_it_were_unpacked(dtype, data):
    steps = data.draw(training_steps(max_steps=70))
    weights = data.draw(moving_weights(dtype, len(steps)))
    weights = np.tile(weights, data.draw(st.sampled_from([1, 1, GROUP // 40 + 1, 60])))
    bits = np.ascontiguousarray(weights).view(dtype.bits)
    chunk_rows = data.draw(st.integers(1, 16))
    start = data.draw(st.integers(0, len(steps) - 2))
    stop = data.draw(st.integers(start + 2, len(steps)))
    shape = (chunk_rows, bits.shape[1] + data.draw(st.sampled_from([0, 1, 70, GROUP])))
    columns = np.array(sorted(data.draw(st.sets(st.integers(0, bits.shape[1] - 1), max_size=9))), np.int64)
    regression = BlockRegression(dtype, Abscissa.of(steps[start:stop]), bits.shape[1], MAPS)
    chunks = packed(bits, *shape)
    found, trusted, sample = regression.fit_packed(chunks, shape, FLOAT, (start, stop), columns)
    expected, expected_trust = regression.fit(bits[start:stop])
    assert trusted == expected_trust
    for name in (*MAPS, "counts", "sums", "histogram"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(sample, bits[start:stop, columns])


def test_a_chunk_that_holds_something_else_is_found_out():
    dtype = FITTED[0]
    rng = np.random.default_rng(0)
    moves = rng.choice([0, 0, 0, 1, 9], (4, 3000))  # the last of which are exceptions
    bits = (0x3C00 + moves).astype(dtype.bits)
    regression = BlockRegression(dtype, Abscissa.of(range(4)), 3000)
    (chunk,) = packed(bits, 4, 3000)
    none = np.empty(0, np.int64)
    for damaged in (chunk[:-1], np.append(chunk, np.uint8(0))):
        with pytest.raises(ValueError, match="the bit planes hold other numbers than were expected"):
            regression.fit_packed([damaged], (4, 3000), FLOAT, (0, 4), none)
    with pytest.raises(ValueError, match="do not end where they should"):
        regression.fit_packed([np.full(200, 255, np.uint8)], (4, 3000), FLOAT, (0, 4), none)
    with pytest.raises(ValueError, match="the bit planes hold other numbers than were expected"):
        regression.fit_packed([chunk], (4, 3000 + GROUP), FLOAT, (0, 4), none)


def test_chunks_are_laid_out_at_multiples_of_eight_and_a_single_one_stays_where_it_is():
    dtype = FITTED[0]
    bits = np.random.default_rng(0).normal(0, 0.02, (6, 100)).astype(dtype.numpy).view(dtype.bits)
    chunks = packed(bits, 2, 100)
    data, sections = lay_out(chunks, (2, 100), dtype.bits)
    assert not data.ctypes.data % 8
    assert not (sections[:, 1] % 8).any()
    single = chunks[0].copy()
    assert np.shares_memory(lay_out([single], (2, 100), dtype.bits)[0], single)
