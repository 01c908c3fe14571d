"""The step delta against its specification in docs/store-format.md, written again in integers of Python."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.dtypes import DTYPES, from_zarr
from ckptlin.kernels.step_delta import FLOAT, SIGNED, UNSIGNED, delta_decode, delta_encode
from ckptlin.store.codec_names import order_kind
from tests.strategies import special_bits, trajectories

FLOATS = [dtype for dtype in DTYPES if dtype.is_float]
WORDS = [np.uint8, np.uint16, np.uint32, np.uint64]
KINDS = [FLOAT, SIGNED, UNSIGNED]


def to_ordered(x, kind, width):
    half = 1 << (width - 1)
    if kind == UNSIGNED:
        return x
    if kind == SIGNED:
        return x + half if x < half else x - half
    return x + half if x < half else 2 * half - 1 - x


def from_ordered(u, kind, width):
    half = 1 << (width - 1)
    if kind == UNSIGNED:
        return u
    if kind == SIGNED:
        return u + half if u < half else u - half
    return u - half if u >= half else 2 * half - 1 - u


def zigzag(difference, width):
    signed = difference % (1 << width)
    if signed >= 1 << (width - 1):
        signed -= 1 << width
    return 2 * signed if signed >= 0 else -2 * signed - 1


def unzigzag(z):
    return z // 2 if z % 2 == 0 else -(z + 1) // 2


def encode_by_specification(rows, kind, width):
    ordered = [[to_ordered(x, kind, width) for x in row] for row in rows]
    encoded = [
        [zigzag(here - there, width) for here, there in zip(row, after, strict=True)]
        for row, after in pairwise(ordered)
    ]
    return [*encoded, rows[-1]]


def decode_by_specification(rows, kind, width):
    decoded = [rows[-1]]
    for row in reversed(rows[:-1]):
        ordered = [
            (to_ordered(after, kind, width) + unzigzag(z)) % (1 << width)
            for z, after in zip(row, decoded[0], strict=True)
        ]
        decoded.insert(0, [from_ordered(u, kind, width) for u in ordered])
    return decoded


def encoded(bits, kind):
    out = bits.copy()
    delta_encode(out, kind)
    return out


def decoded(bits, kind):
    out = bits.copy()
    delta_decode(out, kind)
    return out


@given(trajectories())
def test_every_bit_comes_back(trajectory):
    dtype, bits = trajectory
    kind = order_kind(dtype.numpy)
    np.testing.assert_array_equal(decoded(encoded(bits, kind), kind), bits, strict=True)


@given(trajectories(), st.sampled_from(KINDS))
def test_encoding_and_decoding_agree_with_the_specification(trajectory, kind):
    dtype, bits = trajectory
    width = dtype.itemsize * 8
    rows = bits.tolist()
    assert encoded(bits, kind).tolist() == encode_by_specification(rows, kind, width)
    assert decoded(bits, kind).tolist() == decode_by_specification(rows, kind, width)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_row_and_no_columns_stay_as_they_are(word, kind):
    for shape in ((1, 5), (1, 0), (7, 0)):
        bits = np.arange(shape[0] * shape[1], dtype=word).reshape(shape) + word(200)
        np.testing.assert_array_equal(encoded(bits, kind), bits, strict=True)


@pytest.mark.parametrize("num_params", [4095, 4096, 4097, 12289])
@pytest.mark.parametrize("word", WORDS)
def test_a_column_does_not_depend_on_its_neighbours(word, num_params):
    rng = np.random.default_rng(num_params)
    bits = rng.integers(0, np.iinfo(word).max, (5, num_params), word, endpoint=True)
    whole = encoded(bits, FLOAT)
    for lo, hi in ((0, 1), (4000, 4095), (num_params - 3, num_params)):
        np.testing.assert_array_equal(whole[:, lo:hi], encoded(np.ascontiguousarray(bits[:, lo:hi]), FLOAT))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
def test_all_special_values_come_back_from_beside_each_other(dtype):
    special = special_bits(dtype)
    bits = np.array([(a, b, a) for a in special for b in special], dtype.bits).T.copy()
    np.testing.assert_array_equal(decoded(encoded(bits, FLOAT), FLOAT), bits)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
def test_the_next_larger_and_smaller_float_are_coded_one_and_two(dtype):
    """Minus zero and zero are neighbours too, and so are the largest number and infinity where there is one."""
    if dtype.itemsize <= 2:
        every = np.arange(1 << (8 * dtype.itemsize), dtype=np.uint64).astype(dtype.bits).view(dtype.numpy)
    else:
        some = np.random.default_rng(0).normal(0, 0.02, 1000).astype(dtype.numpy)
        every = np.concatenate([some, np.nextafter(some, dtype.numpy.type(np.inf))])
        every = np.concatenate([every, np.array([-0.0, 0.0, np.inf, -np.inf], dtype.numpy)])
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = every[~np.isnan(every.astype(np.float64))]
    bits = values.view(dtype.bits)
    order = np.lexsort((1 - (bits >> (8 * dtype.itemsize - 1)).astype(int), values.astype(np.float64)))
    bits = bits[order]
    up = encoded(np.stack([bits[:-1], bits[1:]]), FLOAT)[0]
    down = encoded(np.stack([bits[1:], bits[:-1]]), FLOAT)[0]
    if dtype.itemsize <= 2:
        assert set(up.tolist()) == {1}
        assert set(down.tolist()) == {2}
    else:  # only some neighbours are in the sample, but none may be out of order
        assert np.all(up % 2 == 1)
        assert np.all((down % 2 == 0) & (down > 0))
        assert (up == 1).sum() >= 1000


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_weight_is_coded_zero_and_a_larger_move_never_smaller(kind):
    base = 1 << 14
    moves = np.arange(-5000, 5000)
    bits = np.stack([base + moves, np.full(moves.size, base)]).astype(np.uint16)
    codes = encoded(bits, kind)[0].astype(int)
    assert codes[moves == 0] == [0]
    ranked = codes[np.argsort(np.abs(moves), kind="stable")]
    assert np.all(np.diff(ranked[1:].reshape(-1)[::2]) > 0)
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bfloat16", FLOAT), ("float8_e5m2", FLOAT), ("float64", FLOAT), ("int16", SIGNED), ("uint64", UNSIGNED),
     ("bool", UNSIGNED), ("float8_e4m3fn", FLOAT), ("int8", SIGNED)],
)  # fmt: skip
def test_element_types_are_ordered_by_their_kind(name, kind):
    assert order_kind(from_zarr(name).numpy) == kind


def test_the_worked_example_of_the_documentation_holds():
    weights = np.array([[0.02, -0.0], [0.02002, 0.0], [0.01978, -1e-3]], ml_dtypes.bfloat16)
    bits = weights.view(np.uint16)
    np.testing.assert_array_equal(bits, [[0x3CA4, 0x8000], [0x3CA4, 0x0000], [0x3CA2, 0xBA83]])
    np.testing.assert_array_equal(encoded(bits, FLOAT), [[0, 1], [4, 29960], [0x3CA2, 0xBA83]])
