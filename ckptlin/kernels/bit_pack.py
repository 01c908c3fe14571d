"""Small integers into bit planes: the last stage of a chunk of weights, fused with the step delta.

The format is specified in ``docs/store-format.md``.  Words go in groups of `GROUP` that lie side by side in a
row.  A group has a width of its own: the lowest values are stored in that many bit planes, and a value that
does not fit follows as an exception.  Behind the step delta nearly all words are 0, 1 or 2, but a weight near
zero, whose unit in the last place is small, moves by many of them: two planes and 4 to 12% of exceptions
hold what a fixed width would need a byte for.

Planes are laid out for vector instructions: bit k of word i belongs to value ``k · (number of words) + i``,
so that each shift of a whole plane gives values that lie side by side.
"""

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

from ckptlin.kernels.step_delta import from_ordered, order_constants, to_ordered, undo_zigzag, zigzag

__all__ = ["GROUP", "NO_DELTA", "pack", "sections_of", "unpack", "unpack_group", "unpack_scratch"]

# Values of a group.  A row of a group and its successor stay in the L1 cache, whatever their width.
GROUP = 1024
# In the place of the order of the bits: words are packed as they are.
NO_DELTA = 3

# A section's length is a multiple of this, so that planes can be read by 64 bits.
_ALIGN = 8
# Values of a group by which its width is chosen.
_SAMPLE = 64
# An exception is one byte, or this one and the whole word.
_LONG = 255
# Most bytes that one group's exceptions may take before they are found to be too many.
_SLACK = GROUP * 9 + 16


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(context: Any, x: Any) -> Any:
    """Number of zeros below the lowest bit that is set; x is not 0."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return nb.uint64(nb.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(context: Any, x: Any) -> Any:
    """Number of zeros above the highest bit that is set; 64 for 0."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return nb.uint64(nb.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(context: Any, x: Any) -> Any:
    """Number of bits that are set."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return nb.uint64(nb.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _width_of(context: Any, array: Any) -> Any:
    """Bits of an array's elements, a constant to the compiler."""
    bits = array.dtype.bitwidth

    def generate(_context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return ir.Constant(ir.IntType(64), bits)

    return nb.int64(array), generate


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _exceptions(planes: Any, start: int, num: int, width: int, lanes: Any, stride: int, where: Any) -> Any:
    """Find the values whose bits are all set, in the order of the planes' bits.

    ``planes`` are seen by 64 bits; ``num`` of them make a plane.  Up to eight a time are noted without asking
    how many there are, since a branch that is predicted wrongly costs more than they do.
    """
    found: Any = 0
    never_zero = np.uint64(1) << np.uint64(63)
    for q in range(num):
        mask = planes[start + q]
        for p in range(1, width):
            mask &= planes[start + p * num + q]
        count = np.int64(_popcount(mask))
        offset = q * stride
        for i in range(4):
            where[found + i] = lanes[np.int64(_trailing_zeros(mask | never_zero))] + offset
            mask &= mask - np.uint64(1)
        if count > 4:
            for i in range(4, 8):
                where[found + i] = lanes[np.int64(_trailing_zeros(mask | never_zero))] + offset
                mask &= mask - np.uint64(1)
            for i in range(8, count):
                where[found + i] = lanes[np.int64(_trailing_zeros(mask))] + offset
                mask &= mask - np.uint64(1)
        found += count
    return found


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _choose_width(z: Any, num: int, histogram: Any) -> Any:
    """Return the width that makes a sample of the group smallest: 0 for a list, all bits for no packing."""
    bits = _width_of(z)
    all_ones = ~np.uint64(0)
    # A value below 2^b - 1 fits into b planes: count values by the bits of the value after them.
    histogram[:] = 0
    for i in range(0, num, num // _SAMPLE):
        value = np.uint64(z[i])
        length = np.int64(64) - np.int64(_leading_zeros(value + np.uint64(1)))
        histogram[bits + 1 if value == all_ones else length] += 1
    best, least = bits, _SAMPLE * bits
    too_large, long = 0, 0
    for b in range(bits, 0, -1):
        too_large += histogram[b + 1]
        if b >= 8:
            long = too_large
        if b < bits:
            size = _SAMPLE * b + 8 * too_large + bits * long
            if size < least:
                best, least = b, size
    if 24 * (_SAMPLE - histogram[1]) + bits * long < least:
        best = 0
    return best


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _put(extra: Any, at: int, value: Any, num_bytes: int) -> int:
    """Append an exception; return where the next one goes."""
    extra[at] = np.uint8(min(value, np.uint64(_LONG)))
    at += 1
    if value >= np.uint64(_LONG):
        for s in range(num_bytes):
            extra[at] = np.uint8((value >> np.uint64(8 * s)) & np.uint64(255))
            at += 1
    return at


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _pack_planes(z: Any, num: int, width: int, low: Any, planes: Any) -> None:
    """Write ``width`` planes of what fits, and ones in all of them for what does not."""
    word = z.dtype.type
    bits = _width_of(z)
    words = num // bits
    largest = word((np.uint64(1) << np.uint64(width)) - np.uint64(1))
    for i in range(num):
        low[i] = min(z[i], largest)
    for p in range(width):
        plane = planes[p * words : (p + 1) * words]
        for i in range(words):
            plane[i] = word(low[i] >> word(p)) & word(1)
        for k in range(1, bits):
            lane = low[k * words : (k + 1) * words]
            for i in range(words):
                plane[i] = word(plane[i] | word(word(word(lane[i] >> word(p)) & word(1)) << word(k)))


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _lane_table(word_bits: int, size: int, lanes: Any) -> tuple[int, int]:
    """Fill ``lanes``, ``(64,) int64``: the value that bit r of a plane's first 64 bits belongs to.

    Returns how many values a group of ``size`` takes with its padding, and how many words its planes have.
    """
    num = (size + 63) // 64 * 64
    words = num // word_bits
    for r in range(64):
        lanes[r] = (r % word_bits) * words + r // word_bits
    return num, words


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _pack(bits: Any, kind: int, sign: Any, top: Any, widths: Any, planes: Any, extra: Any) -> tuple[int, int]:
    """Fill the three sections; return how many words of planes and bytes of exceptions they took."""
    word = bits.dtype.type
    num_bits = _width_of(bits)
    num_bytes = num_bits // 8
    num_rows, num_params = bits.shape
    z, low, after = np.zeros(GROUP, word), np.zeros(GROUP, word), np.zeros(GROUP, word)
    histogram = np.zeros(num_bits + 2, np.int64)
    lanes, where = np.empty(64, np.int64), np.empty(GROUP + 8, np.int64)
    stride = 64 // num_bits
    planes64 = planes.view(np.uint64)
    group, pos, end = 0, 0, 0
    for lo in range(0, num_params, GROUP):
        size = min(GROUP, num_params - lo)
        num, words = _lane_table(num_bits, size, lanes)
        z[size:] = word(0)
        for t in range(num_rows - 1, -1, -1):
            row = bits[t, lo : lo + size]
            if kind == NO_DELTA:
                z[:size] = row
            elif t == num_rows - 1:
                for i in range(size):
                    z[i] = row[i]
                    after[i] = to_ordered(word, row[i], kind, sign, top)
            else:
                for i in range(size):
                    here = to_ordered(word, row[i], kind, sign, top)
                    z[i] = zigzag(word, word(here - after[i]), top)
                    after[i] = here
            width = _choose_width(z, num, histogram)
            start = end
            # No group takes more than its plain words would.
            room = (num_bits - width) * words * num_bytes
            if width == 0:
                room -= 2
                listed = 0
                end += 2
                for i in range(size):
                    if z[i] != word(0) and end - start <= room:
                        extra[end] = np.uint8(i & 255)
                        extra[end + 1] = np.uint8(i >> 8)
                        end = _put(extra, end + 2, np.uint64(z[i]), num_bytes)
                        listed += 1
                extra[start] = np.uint8(listed & 255)
                extra[start + 1] = np.uint8(listed >> 8)
            elif width < num_bits:
                _pack_planes(z, num, width, low, planes[pos : pos + width * words])
                largest = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
                found = _exceptions(planes64, pos // stride, words // stride, width, lanes, stride, where)
                for i in range(found):
                    end = _put(extra, end, np.uint64(z[where[i]]) - largest, num_bytes)
            if end - start > room:
                width, end = num_bits, start
            if width == num_bits:
                planes[pos : pos + num] = z[:num]
            pos += width * words
            widths[group] = width
            group += 1
    return pos, end


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def unpack_group(
    sections: Any,
    cursor: Any,
    order: Any,
    scratch: Any,
    out: Any,
    first_row: int,
    num_rows: int,
    lo: int,
    size: int,
) -> bool:
    """Undo the packing of one group of columns, the last row first; False if the sections hold something else.

    Parameters
    ----------
    sections : tuple of numpy.ndarray
        Widths ``uint8``, planes in words, the same planes ``uint64``, exceptions ``uint8``.
    cursor : numpy.ndarray
        ``(3,) int64``: the group's number, its first word of planes, its first byte of exceptions; moved on.
    order : tuple
        Kind, sign and top of `step_delta`.
    scratch : tuple of numpy.ndarray
        As `unpack_scratch` makes them.
    out : numpy.ndarray
        Words; rows ``first_row`` to ``first_row + num_rows``, columns ``lo`` to ``lo + size`` are written.
    """
    # By index, for what is said of tuples in `ckptlin.kernels.regression_tile`.
    widths, planes, planes64, extra = sections[0], sections[1], sections[2], sections[3]
    kind, sign, top = order
    z, after, lanes, where = scratch[0], scratch[1], scratch[2], scratch[3]
    word = out.dtype.type
    num_bits = _width_of(out)
    num_bytes = num_bits // 8
    stride = 64 // num_bits
    num, words = _lane_table(num_bits, size, lanes)
    group: Any = cursor[0]
    pos: Any = cursor[1]
    at: Any = cursor[2]
    last = len(extra)
    for t in range(first_row + num_rows - 1, first_row - 1, -1):
        row = out[t, lo : lo + size]
        width = np.int64(widths[group])
        group += 1
        if width > num_bits or pos + width * words > len(planes):
            return False
        delta = kind != NO_DELTA and t != first_row + num_rows - 1
        if width == num_bits:
            z[:num] = planes[pos : pos + num]
        elif width == 0:
            if at + 2 > last:
                return False
            listed: Any = np.int64(extra[at]) | np.int64(extra[at + 1]) << 8
            at += 2
            if not listed and delta:
                row[:] = out[t + 1, lo : lo + size]
                continue
            z[:num] = word(0)
            for _ in range(listed):
                if at + 3 > last:
                    return False
                position: Any = np.int64(extra[at]) | np.int64(extra[at + 1]) << 8
                value = word(extra[at + 2])
                at += 3
                if value == word(_LONG):
                    if at + num_bytes > last:
                        return False
                    value = _long_value(word, extra, at, num_bytes)
                    at += num_bytes
                if position >= size:
                    return False
                z[position] = value
        else:
            found = _exceptions(planes64, pos // stride, words // stride, width, lanes, stride, where)
            if at + found > last:
                return False
            largest = word((np.uint64(1) << np.uint64(width)) - np.uint64(1))
            # Two planes are what most groups have.  Their exceptions go into the row after first, so that
            # the planes themselves need not be written out before they are added to it.
            fused = delta and width == 2 and size == num
            in_place = undo_zigzag(word, largest)
            if not fused:
                _unpack_planes(planes[pos : pos + width * words], width, words, z)
            for i in range(found):
                value = word(extra[at])
                at += 1
                if value == word(_LONG):
                    if at + num_bytes + found - i - 1 > last:
                        return False
                    value = _long_value(word, extra, at, num_bytes)
                    at += num_bytes
                value = word(largest + value)
                j = where[i]
                if fused:
                    after[j] = word(after[j] + word(undo_zigzag(word, value) - in_place))
                else:
                    z[j] = value
            if fused:
                _add_two_planes(planes[pos : pos + 2 * words], words, after, row, kind, sign, top)
                pos += width * words
                continue
        pos += width * words
        if delta:
            for i in range(size):
                u = word(after[i] + undo_zigzag(word, z[i]))
                after[i] = u
                row[i] = from_ordered(word, u, kind, sign, top)
        else:
            row[:] = z[:size]
            if kind != NO_DELTA:
                for i in range(size):
                    after[i] = to_ordered(word, z[i], kind, sign, top)
    cursor[0], cursor[1], cursor[2] = group, pos, at
    return True


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _long_value(word: Any, extra: Any, at: int, num_bytes: int) -> Any:
    """Read a whole word from the exceptions."""
    value = word(0)
    for s in range(num_bytes):
        value = word(value | word(word(extra[at + s]) << word(8 * s)))
    return value


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def unpack_scratch(out: Any) -> tuple[Any, Any, Any, Any]:
    """Return what `unpack_group` works in: two rows of words, the lanes, the places of exceptions."""
    return (
        np.zeros(GROUP, out.dtype),
        np.zeros(GROUP, out.dtype),
        np.empty(64, np.int64),
        np.empty(GROUP + 8, np.int64),
    )


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _unpack(widths: Any, planes: Any, extra: Any, out: Any, kind: int, sign: Any, top: Any) -> bool:
    """Undo `_pack`; False if the sections do not hold just as much as ``out`` takes."""
    num_rows, num_params = out.shape
    sections = (widths, planes, planes.view(np.uint64), extra)
    cursor = np.zeros(3, np.int64)
    scratch = unpack_scratch(out)
    for lo in range(0, num_params, GROUP):
        size = min(GROUP, num_params - lo)
        if not unpack_group(sections, cursor, (kind, sign, top), scratch, out, 0, num_rows, lo, size):
            return False
    complete: bool = cursor[1] == len(planes) and cursor[2] == len(extra)
    return complete


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _unpack_planes(planes: Any, width: int, words: int, z: Any) -> None:
    word = z.dtype.type
    bits = _width_of(z)
    for p in range(width):
        plane = planes[p * words : (p + 1) * words]
        for k in range(bits):
            lane = z[k * words : (k + 1) * words]
            if p == 0:
                for i in range(words):
                    lane[i] = word(plane[i] >> word(k)) & word(1)
            else:
                for i in range(words):
                    lane[i] = word(lane[i] | word(word(word(plane[i] >> word(k)) & word(1)) << word(p)))


@nb.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _add_two_planes(planes: Any, words: int, after: Any, row: Any, kind: int, sign: Any, top: Any) -> None:
    """Unpack two planes, undo the zigzag, and add to the row after, which becomes this one."""
    word = row.dtype.type
    lowest, second = planes[:words], planes[words : 2 * words]
    for k in range(_width_of(row)):
        ordered = after[k * words : (k + 1) * words]
        lane = row[k * words : (k + 1) * words]
        for i in range(words):
            odd = word(lowest[i] >> word(k)) & word(1)
            half = word(second[i] >> word(k)) & word(1)
            u = word(ordered[i] + word(half ^ word(word(0) - odd)))
            ordered[i] = u
            lane[i] = from_ordered(word, u, kind, sign, top)


def _num_groups(shape: tuple[int, int]) -> int:
    num_rows, num_params = shape
    return num_rows * -(-num_params // GROUP)


def pack(bits: np.ndarray[Any, Any], kind: int) -> tuple[bytes | memoryview, ...]:
    """Pack a chunk's words.

    Parameters
    ----------
    bits : numpy.ndarray
        Shape ``(num_rows, num_params)``, uint8, uint16, uint32 or uint64, C-contiguous; left as it is.
    kind : int
        `step_delta.FLOAT`, `SIGNED` or `UNSIGNED`: the step delta goes first, ordered so; `NO_DELTA`: it does
        not.

    Returns
    -------
    tuple of bytes-like
        To be joined: the length of the planes in bytes (8 bytes, little-endian), the groups' widths, padding
        to 8 bytes, the planes, the exceptions.  At most the size of ``bits`` in all, and 3 bytes a group.
    """
    num_rows, num_params = bits.shape
    widths = np.empty(_num_groups(bits.shape), np.uint8)
    padded = num_rows * (-(-num_params // 64) * 64)
    planes = np.empty(padded, bits.dtype)
    extra = np.empty(padded * bits.itemsize + _SLACK, np.uint8)
    num_words, num_extra = _pack(bits, kind, *order_constants(bits), widths, planes, extra)
    planes = planes[:num_words]
    padding = bytes(-len(widths) % _ALIGN)
    length = planes.nbytes.to_bytes(8, "little")
    return length, widths.tobytes(), padding, planes.data.cast("B"), extra[:num_extra].data


def unpack(data: np.ndarray[Any, Any], out: np.ndarray[Any, Any], kind: int) -> None:
    """Undo `pack` into ``out``, exactly.

    Parameters
    ----------
    data : numpy.ndarray
        uint8, the parts that `pack` returned, joined.
    out : numpy.ndarray
        As the argument of `pack`.

    Raises
    ------
    ValueError
        If ``data`` is not what `pack` makes of words of this shape and width.
    """
    widths, planes, extra = sections_of(data, out.shape, out.dtype)
    if not _unpack(widths, planes, extra, out, kind, *order_constants(out)):
        raise ValueError("the bit planes hold other numbers than were expected")


def sections_of(
    data: np.ndarray[Any, Any], shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[Any, Any, Any]:
    """Find the three sections of what `pack` made of words of a shape: widths, planes and exceptions.

    Raises
    ------
    ValueError
        If the planes do not end where they could.
    """
    if data.ctypes.data % _ALIGN:
        data = data.copy()
    num_widths = _num_groups(shape)
    start = _ALIGN + num_widths + -num_widths % _ALIGN
    stop = start + int.from_bytes(data[:_ALIGN].tobytes(), "little")
    if not start <= stop <= len(data) or (stop - start) % _ALIGN:
        raise ValueError("the bit planes do not end where they should")
    return data[_ALIGN : _ALIGN + num_widths], data[start:stop].view(dtype), data[stop:]
