"""The Gram kernel against float64 arithmetic on the weights themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.dtypes import from_zarr
from ckptlin.kernels import oracle
from ckptlin.kernels.gram import cross_products, products, rounding_of
from tests.strategies import FITTED, moving_weights

BF16, F16, F32, F64 = (from_zarr(name) for name in ("bfloat16", "float16", "float32", "float64"))
# Of |f_t| |f_u|: sums of 256 products in float32, and a difference that is rounded once.
FLOAT32_TOLERANCE, FLOAT64_TOLERANCE = 2e-6, 1e-13
# Squares of what lies below lose digits to subnormals in float32; blocks of such are done in float64.
SAFE = 1e-30


def bits_of(weights):
    dtype = next(d for d in FITTED if d.numpy == weights.dtype)
    return np.ascontiguousarray(weights).view(dtype.bits), dtype


def multiply(weights, real, first=0):
    bits, dtype = bits_of(weights)
    path = np.zeros(bits.shape[1], real)
    return products(bits, None, dtype, path, first=first), path


def expected_products(weights):
    moves = np.diff(weights.astype(np.float64), axis=0)
    sizes = np.linalg.norm(moves, axis=1)
    return moves @ moves.T, np.outer(sizes, sizes)


def assert_agrees(found, weights, tolerance):
    expected, scale = expected_products(weights)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found.T)
    assert np.all(np.abs(found - expected) <= tolerance * scale)


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=150)
@given(data=st.data())
def test_any_trajectory_agrees_with_float64(dtype, data):
    num_steps = data.draw(st.sampled_from([1, 2, 3, 17, 40]) | st.integers(1, 20))
    num_params = data.draw(st.sampled_from([1, 7, 255, 256, 257, 600]))
    weights = data.draw(moving_weights(dtype, num_steps, num_params))
    with np.errstate(over="ignore", invalid="ignore"):
        found, path = multiply(weights, np.float64)
        assert_agrees(found, weights, FLOAT64_TOLERANCE)
        assert (path > 0).tolist() == (weights != weights[0]).any(axis=0).tolist()
        if dtype is not F64 and (np.diag(found) > SAFE).all() and np.diag(found).max(initial=0) < 1e30:
            found, path = multiply(weights, np.float32)
            assert_agrees(found, weights, FLOAT32_TOLERANCE)
            assert (path > 0).tolist() == (weights != weights[0]).any(axis=0).tolist()


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
@settings(max_examples=50)
@given(data=st.data())
def test_how_the_rows_are_grouped_makes_no_difference_to_the_last_bit(dtype, data):
    num_steps = data.draw(st.integers(2, 20))
    weights = data.draw(moving_weights(dtype, num_steps, data.draw(st.sampled_from([3, 256, 700]))))
    cut = data.draw(st.integers(1, num_steps - 1))
    first = data.draw(st.integers(0, num_steps))
    bits, dtype = bits_of(weights)
    for real in {np.float64} if dtype is F64 else {np.float32, np.float64}:
        whole, _ = multiply(weights, real)
        early, late = bits[:cut], bits[cut:]
        crossed = cross_products(late, None, early, late[0], dtype, real)
        np.testing.assert_array_equal(crossed, whole[cut:, :cut])
        path = np.zeros(bits.shape[1], real)
        np.testing.assert_array_equal(products(early, late[0], dtype, path), whole[:cut, :cut])
        np.testing.assert_array_equal(products(late, None, dtype, path[:0]), whole[cut:, cut:])
        part, _ = multiply(weights, real, first)
        later = np.maximum.outer(np.arange(num_steps - 1), np.arange(num_steps - 1)) >= first
        np.testing.assert_array_equal(part[later], whole[later])


@pytest.mark.parametrize("dtype", FITTED, ids=lambda d: d.zarr)
def test_weights_that_never_move_have_products_of_exactly_zero(dtype):
    weights = np.repeat(np.random.default_rng(0).normal(size=(1, 300)).astype(dtype.numpy), 5, axis=0)
    found, path = multiply(weights, np.float32 if dtype is not F64 else np.float64)
    assert not found.any()
    assert not path.any()


def test_a_single_row_has_no_products():
    found, path = multiply(np.ones((1, 10), BF16.numpy), np.float32)
    assert found.shape == (0, 0)
    assert not path.any()


def test_nan_and_infinity_come_through():
    for value in (np.nan, np.inf):
        weights = np.zeros((3, 10), np.float32)
        weights[1, 4] = value
        assert not np.isfinite(multiply(weights, np.float32)[0]).all()


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda d: d.zarr)
@settings(max_examples=50)
@given(data=st.data())
def test_rounding_is_that_of_the_oracle_for_one_row(dtype, data):
    steps = tuple(range(data.draw(st.integers(2, 9))))
    weights = data.draw(moving_weights(dtype, len(steps)))
    bits, _ = bits_of(weights)
    _, path = multiply(weights, np.float64)
    expected = oracle.fit_block(weights, steps).sums["rounding"] / len(steps)
    assert rounding_of(bits[0], path, dtype) == pytest.approx(expected, rel=1e-12)


def test_float64_has_no_rounding():
    assert rounding_of(np.ones(4).view("<u8"), np.ones(4), F64) == 0.0


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=lambda d: d.zarr)
def test_many_tiles_are_more_accurate_than_float32(dtype):
    """What rounds in one tile does not in the next: errors average out, and blocks are large."""
    rng = np.random.default_rng(1)
    moves = rng.normal(0, 1e-4, (13, 1 << 17))
    weights = (rng.normal(0, 0.02, 1 << 17) + np.cumsum(moves, axis=0)).astype(dtype.numpy)
    found, _ = multiply(weights, np.float32)
    assert_agrees(found, weights, 3e-8)


def test_a_distance_from_the_first_step_does_not_hurt_what_comes_later():
    rng = np.random.default_rng(2)
    weights = 1e-3 * rng.normal(size=(6, 4096)).cumsum(axis=0)
    weights[0] += 100 * rng.normal(size=4096)
    found, _ = multiply(weights.astype(np.float32), np.float32)
    expected, scale = expected_products(weights.astype(np.float32))
    assert np.all(np.abs(found - expected)[1:, 1:] <= 1e-7 * scale[1:, 1:])
