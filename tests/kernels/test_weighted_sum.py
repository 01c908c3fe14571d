import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptlin.dtypes import from_zarr
from ckptlin.kernels.weighted_sum import BlockSum, round_once
from tests.exact import FLOATS, nearest
from tests.strategies import bits as bits_of

F32, F64, BF16, F16 = (from_zarr(name) for name in ("float32", "float64", "bfloat16", "float16"))


def weighted_sum(rows, coefficients, dtype, *, out=None, keep=None, groups=1):
    """Run the kernel on rows of values, as extrapolation does: the reference row's coefficient is left out."""
    words = np.ascontiguousarray(rows).view(dtype.bits)
    coefficients = np.asarray(coefficients, np.float64)
    reference = int(np.flatnonzero(coefficients)[0])
    others = coefficients.copy()
    others[reference] = 0.0
    total = BlockSum(dtype, words[reference])
    for part in np.array_split(np.arange(len(words)), groups):
        total.add(words[part], others[part])
    return total.finish(words[-1], keep, out or dtype)


def finite_values(dtype, size):
    """Values of a dtype of every magnitude, in blocks of a few."""
    word = bits_of(dtype).filter(lambda b: np.isfinite(np.array(b, dtype.bits).view(dtype.numpy)))
    return st.lists(word, min_size=size, max_size=size).map(lambda b: np.array(b, dtype.bits).view(dtype.numpy))


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(finite_values(F32, n), finite_values(F32, n))),
    st.integers(0, 2000),
    st.integers(1, 2000),
    st.integers(-5000, 9000),
)
@example((np.float32([-0.0, 0.0, -0.0, 0.0]), np.float32([-0.0, 0.0, 0.0, -0.0])), 100, 100, 50)
def test_two_rows_give_the_formula_in_float64_rounded_once(rows, base, span, target):
    alpha = (target - base) / span
    first, last = (row.astype(np.float64) for row in rows)
    with np.errstate(over="ignore"):
        expected = (first + alpha * (last - first)).astype(np.float32)
    if alpha in (0.0, 1.0):  # one row alone, of which −0.0 stays −0.0
        expected = rows[int(alpha)]
    found = weighted_sum(rows, [1.0 - alpha, alpha], F32)
    assert found.values.tobytes() == expected.tobytes()
    assert found.num_overflowed == np.isinf(expected).sum()
    assert found.is_finite


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_alone_comes_back_bit_for_bit(dtype, row):
    values = np.array([[1, -0.0, 0.0, -3], [-0.0, 2, 5e-8, 0.0], [0.0, -0.0, 7, 1]], dtype.numpy)
    coefficients = np.zeros(3)
    coefficients[row] = 1.0
    assert weighted_sum(values, coefficients, dtype).values.tobytes() == values[row].tobytes()


def to_the_bit(values, dtype):
    found = round_once(np.asarray(values, np.float64), dtype)
    assert found.dtype == dtype.numpy
    return found.astype(np.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
@given(data=st.data())
def test_rounding_is_to_the_nearest_number_once(dtype, data):
    values = data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    assert to_the_bit(values, dtype).tolist() == [nearest(Fraction(v), dtype) for v in values]


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda d: d.zarr)
@given(data=st.data())
def test_ties_go_to_even_and_their_neighbours_to_the_nearer_side(dtype, data):
    """Where rounding by way of float32 goes wrong: a tie that a bit far below float32's last one breaks."""
    most = (1 << (8 * dtype.itemsize - 1)) - (2 << dtype.mantissa_bits)
    low = data.draw(st.integers(0, most))
    below, above = np.array([low, low + 1], dtype.bits).view(dtype.numpy).astype(np.float64)
    middle = (below + above) / 2
    candidates = [middle, math.nextafter(middle, 0), math.nextafter(middle, math.inf)]
    candidates += [middle * (1 + 2.0**-k) for k in (20, 24, 25, 26, 30, 45, 52)]
    candidates += [middle * (1 - 2.0**-k) for k in (20, 24, 25, 26, 30, 45, 53)]
    values = [sign * v for v in candidates for sign in (1, -1)]
    assert to_the_bit(values, dtype).tolist() == [nearest(Fraction(v), dtype) for v in values]


def test_ties_are_where_ml_dtypes_rounds_twice():
    tie_broken = np.array([1 + 2.0**-8 + 2.0**-40])
    assert tie_broken.astype(ml_dtypes.bfloat16).astype(np.float64)[0] == 1.0  # by way of float32, it is a tie
    assert to_the_bit(tie_broken, BF16)[0] == 1 + 2.0**-7


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(F32, (2 - 2.0**-23) * 2.0**127), (BF16, (2 - 2.0**-7) * 2.0**127), (F16, 65504.0)],
    ids=lambda p: getattr(p, "zarr", ""),
)
def test_beyond_half_a_unit_above_the_largest_number_lies_infinity(dtype, largest):
    half = (largest - float(np.nextafter(dtype.numpy.type(largest), dtype.numpy.type(0)))) / 2
    at_limit = math.nextafter(largest + half, 0)
    assert to_the_bit([at_limit, -at_limit, largest + half], dtype).tolist() == [largest, -largest, math.inf]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
def test_what_is_not_finite_stays_what_it_is(dtype):
    payloads = [0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFE0000000]
    values = np.concatenate([np.array(payloads, np.uint64).view(np.float64), [np.inf, -np.inf, -0.0]])
    found = to_the_bit(values, dtype)
    assert np.isnan(found[:4]).all()
    assert found[4:].tolist() == [math.inf, -math.inf, 0.0]
    assert np.signbit(found[-1])


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
@given(data=st.data())
def test_many_rows_come_as_near_to_the_exact_sum_as_float64_allows(dtype, data):
    num_rows = data.draw(st.integers(2, 20))
    number = st.integers(-(2**15), 2**15).map(lambda n: n / 2**12)
    rows = np.array(
        data.draw(st.lists(st.lists(number, min_size=5, max_size=5), min_size=num_rows, max_size=num_rows))
    ).astype(dtype.numpy)
    coefficients = data.draw(st.lists(st.floats(-4, 4), min_size=num_rows, max_size=num_rows))
    coefficients[0] = 1.0 - math.fsum(coefficients[1:])
    if coefficients[0] == 0.0:
        coefficients[0], coefficients[1] = 0.5, coefficients[1] - 0.5
    found = weighted_sum(rows, coefficients, dtype).values.astype(np.float64)
    for column, value in enumerate(found):
        weights = map(Fraction, rows[:, column].tolist())
        exact = sum(Fraction(a) * w for a, w in zip(coefficients, weights, strict=True))
        # Rounding of the coefficients' sum, of each product and of each addition.
        slack = Fraction(2) ** -52 * 64 * num_rows * 16
        assert nearest(exact - slack, dtype) <= value <= nearest(exact + slack, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
@pytest.mark.parametrize("out", FLOATS, ids=lambda d: d.zarr)
def test_groups_of_rows_and_the_size_of_a_block_make_no_difference(dtype, out):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 4099)).astype(dtype.numpy)  # two tiles and a bit
    coefficients = rng.normal(size=40)
    whole = weighted_sum(rows, coefficients, dtype, out=out).values
    for groups in (2, 3, 40):
        grouped = weighted_sum(rows, coefficients, dtype, out=out, groups=groups).values
        assert grouped.tobytes() == whole.tobytes()
    for lo, hi in itertools.pairwise([0, 1, 2047, 2049, 4099]):
        part = weighted_sum(rows[:, lo:hi], coefficients, dtype, out=out).values
        assert part.tobytes() == whole[lo:hi].tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
def test_rows_without_a_coefficient_are_not_looked_at(dtype):
    rows = np.array([[1.0, 2.0], [np.nan, np.inf], [3.0, 6.0]], dtype.numpy)
    found = weighted_sum(rows, [-1.0, 0.0, 2.0], dtype)
    assert found.values.astype(np.float64).tolist() == [5.0, 10.0]
    assert found.is_finite


def test_a_parameter_held_takes_the_last_value_in_the_dtype_of_the_output():
    rows = np.array([[1.0, -0.0], [1.0 + 2.0**-8 + 2.0**-40, -0.0], [1.0 + 2.0**-8 + 2.0**-40, -0.0]])
    keep = np.array([True, True])
    found = weighted_sum(rows, [-1.0, 0.0, 2.0], F64, out=BF16, keep=keep)
    assert found.values.astype(np.float64).tolist() == [1.0 + 2.0**-7, 0.0]
    assert np.signbit(found.values[1].astype(np.float64))
    assert weighted_sum(rows, [-1.0, 0.0, 2.0], F64, keep=keep).values.tobytes() == rows[-1].tobytes()


def test_changes_that_rounding_takes_away_are_counted():
    # Above 1 bfloat16 has a spacing of 2^-7: two and a half units are rounded to two, one and a quarter to one,
    # the last values; the third weight never moved, and is not counted.
    unit = 2.0**-7
    rows = np.array([[1.0, 1.0, 1.0], [1 + 2 * unit, 1 + unit, 1.0]], ml_dtypes.bfloat16)
    found = weighted_sum(rows, [-0.25, 1.25], BF16)
    assert found.values.astype(np.float64).tolist() == [1 + 2 * unit, 1 + unit, 1.0]
    assert found.num_lost == 2
    assert weighted_sum(rows, [-0.25, 1.25], BF16, out=F32).num_lost == 0
    assert weighted_sum(rows, [-0.25, 1.25], BF16, keep=np.array([True, False, False])).num_lost == 1


def test_values_beyond_the_range_are_counted_unless_they_are_held():
    rows = np.array([[0.0, 0.0, 1.0], [60000.0, -60000.0, 1.0]], np.float16)
    assert weighted_sum(rows, [-1.0, 2.0], F16).num_overflowed == 2
    assert weighted_sum(rows, [-1.0, 2.0], F16, keep=np.array([True, False, False])).num_overflowed == 1
    assert weighted_sum(rows, [-1.0, 2.0], F16, out=F32).num_overflowed == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_shows_also_where_the_parameter_is_held(bad):
    rows = np.array([[1.0, bad], [2.0, 3.0]], np.float32)
    assert not weighted_sum(rows, [-1.0, 2.0], F32).is_finite
    assert not weighted_sum(rows, [-1.0, 2.0], F32, keep=np.array([False, True])).is_finite
