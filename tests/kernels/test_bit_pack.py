"""Bit planes against their specification in docs/store-format.md, read again with integers of Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin.kernels.bit_pack import GROUP, NO_DELTA, pack, unpack
from ckptlin.kernels.step_delta import FLOAT, SIGNED, UNSIGNED, delta_encode

WORDS = [np.uint8, np.uint16, np.uint32, np.uint64]
each_word = pytest.mark.parametrize("word", WORDS)


def packed(bits, kind=NO_DELTA):
    return b"".join(pack(bits, kind))


def read_by_specification(data, shape, width):
    """Return the words of each row, as the page says that they are found: one after the other, in Python."""
    num_rows, num_params = shape
    num_groups = -(-num_params // GROUP)
    stop = int.from_bytes(data[:8], "little")
    widths = data[8 : 8 + num_rows * num_groups]
    start = 8 + -(-len(widths) // 8) * 8
    planes, extra = data[start : start + stop], data[start + stop :]
    rows = [[] for _ in range(num_rows)]
    at = end = 0

    def exception():
        nonlocal end
        value, end = extra[end], end + 1
        if value == 255:
            value, end = int.from_bytes(extra[end : end + width // 8], "little"), end + width // 8
        return value

    for group in range(num_groups):
        size = min(GROUP, num_params - group * GROUP)
        num = -(-size // 64) * 64
        for number, t in enumerate(reversed(range(num_rows))):
            b = widths[group * num_rows + number]
            values = [0] * num
            if b == width:
                for i in range(num):
                    values[i] = int.from_bytes(planes[at : at + width // 8], "little")
                    at += width // 8
            elif b == 0:
                listed, end = int.from_bytes(extra[end : end + 2], "little"), end + 2
                for _ in range(listed):
                    position, end = int.from_bytes(extra[end : end + 2], "little"), end + 2
                    values[position] = exception()
            else:
                words = num // width
                for p in range(b):
                    for i in range(words):
                        word = int.from_bytes(planes[at : at + width // 8], "little")
                        at += width // 8
                        for k in range(width):
                            values[k * words + i] |= (word >> k & 1) << p
                for i in range(words):
                    for k in range(width):
                        if values[k * words + i] == 2**b - 1:
                            values[k * words + i] += exception()
            assert not any(values[size:])
            rows[t] += values[:size]
    assert (at, end) == (len(planes), len(extra))
    return rows


@st.composite
def chunks(draw):
    """Words whose bits are few, many or anything, in groups that differ, some of them cut short."""
    word = draw(st.sampled_from(WORDS))
    width = 8 * np.dtype(word).itemsize
    num_rows = draw(st.integers(1, 4))
    num_params = draw(st.sampled_from([1, 7, 63, 64, 65, 500, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 70]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # How many bits a value has is drawn for each value, from a distribution drawn for each row and group.
    groups = -(-num_params // GROUP)
    few = rng.choice([0, 0, 1, 2, 3, width // 2, width], (num_rows, groups)).repeat(GROUP, axis=1)[
        :, :num_params
    ]
    many = rng.choice([0, 1, width], (num_rows, groups)).repeat(GROUP, axis=1)[:, :num_params]
    share = rng.choice([0, 0.001, 0.05, 0.5], (num_rows, groups)).repeat(GROUP, axis=1)[:, :num_params]
    num_bits = np.where(rng.random(few.shape) < share, np.maximum(few, many), few)
    values = rng.integers(0, 2**64, few.shape, np.uint64, endpoint=False)
    values = np.where(num_bits == 0, 0, values >> (64 - np.maximum(num_bits, 1)).astype(np.uint64))
    if draw(st.booleans()):
        values[num_bits == width] = 2**width - 1
    return np.ascontiguousarray(values.astype(word))


@settings(deadline=None, max_examples=60)
@given(chunks())
def test_what_is_packed_is_as_specified(bits):
    rows = read_by_specification(packed(bits), bits.shape, 8 * bits.itemsize)
    assert rows == bits.tolist()


@settings(deadline=None)
@given(chunks(), st.sampled_from([FLOAT, SIGNED, UNSIGNED, NO_DELTA]))
def test_every_bit_comes_back(bits, kind):
    before = bits.copy()
    data = np.frombuffer(packed(bits, kind), np.uint8)
    np.testing.assert_array_equal(bits, before)
    out = np.full_like(bits, 170)
    unpack(data, out, kind)
    np.testing.assert_array_equal(out, bits, strict=True)


@settings(deadline=None)
@given(chunks(), st.sampled_from([FLOAT, SIGNED, UNSIGNED]))
def test_with_the_step_delta_or_behind_it_the_bytes_are_the_same(bits, kind):
    fused = packed(bits, kind)
    delta_encode(bits, kind)
    assert packed(bits) == fused


@settings(deadline=None)
@given(chunks())
def test_no_chunk_takes_more_than_its_words_and_widths(bits):
    num_rows, num_params = bits.shape
    padded = num_rows * -(-num_params // 64) * 64 * bits.itemsize
    assert len(packed(bits)) <= padded + 8 + num_rows * -(-num_params // GROUP) + 8


@each_word
def test_each_width_is_used_where_it_is_smallest(word):
    """Values of b bits take b planes; one that is all ones would be an exception, and there is none."""
    width = 8 * np.dtype(word).itemsize
    for b in range(2, width // 2 + 1):
        values = np.random.default_rng(b).integers(0, 2**b - 1, (1, 64 * GROUP)).astype(word)
        data = packed(values)
        chosen = np.frombuffer(data, np.uint8)[8 : 8 + 64]
        assert (chosen == b).all()
        assert len(data) == values.size * b / 8 + 8 + 64


def test_rows_that_did_not_change_take_three_bytes_a_group():
    row = np.random.default_rng(0).integers(0, 2**16, 1 << 16).astype(np.uint16)
    bits = np.repeat(row[None], 16, axis=0)
    assert len(packed(bits, FLOAT)) <= row.nbytes + 16 * 64 * 3 + 16


def test_it_does_not_matter_where_the_bytes_lie():
    bits = np.random.default_rng(0).integers(0, 7, (3, 3000)).astype(np.uint32)
    data = packed(bits)
    for shift in range(8):
        moved = np.frombuffer(bytes(shift) + data, np.uint8)[shift:]
        out = np.empty_like(bits)
        unpack(moved, out, NO_DELTA)
        np.testing.assert_array_equal(out, bits)


@settings(deadline=None, max_examples=300)
@given(chunks(), st.data())
def test_damage_is_refused_or_gives_as_many_numbers(bits, data):
    """Nothing outside of the arrays is read or written, whatever the bytes say: under them lie others."""
    body = bytearray(packed(bits))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    body = body[:cut]
    # The widths and the exceptions are what steers.
    for position in data.draw(st.lists(st.integers(0, max(cut - 1, 0)), max_size=4)) if body else ():
        body[position] = data.draw(st.integers(0, 255))
    canvas = np.full((bits.shape[0] + 2, bits.shape[1]), 85, bits.dtype)
    try:
        unpack(np.frombuffer(bytes(body), np.uint8), canvas[1:-1], NO_DELTA)
    except ValueError as error:
        assert "bit planes" in str(error)  # noqa: PT017 (it need not be raised)
    assert (canvas[[0, -1]] == 85).all()


@pytest.mark.parametrize("shape", [(2, 2900), (2, 3073), (1, 3000), (3, 3000)])
def test_another_shape_is_refused(shape):
    bits = np.random.default_rng(0).integers(0, 7, (2, 3000)).astype(np.uint16)
    with pytest.raises(ValueError, match="the bit planes"):
        unpack(np.frombuffer(packed(bits), np.uint8), np.empty(shape, np.uint16), NO_DELTA)
