"""Bits of a weight to a number that arithmetic can use, one compiled function per element type."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["TAGS", "float32_bits", "float32_of_bits", "float64_bits", "float64_of_bits", "widen"]

# numba has no float16; 64 Ki entries of float32 stay in the L2 cache.
_FLOAT16_VALUES = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)


@intrinsic  # type: ignore[untyped-decorator]
def float32_of_bits(typingctx: Any, bits: Any) -> Any:
    """Reinterpret a uint32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float32_bits(typingctx: Any, value: Any) -> Any:
    """Reinterpret a float32 as a uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float64_of_bits(typingctx: Any, bits: Any) -> Any:
    """Reinterpret a uint64 as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def float64_bits(typingctx: Any, value: Any) -> Any:
    """Reinterpret a float64 as a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint64))

    return types.uint64(types.float64), codegen


# What a kernel is compiled for must show in the *types* of its arguments, or numba cannot keep the compiled
# code between processes (functions that close over other functions miss its cache every time).  Hence each
# element type has a scalar of its own numba type, which carries no value.
TAGS: dict[str, Any] = {
    "bfloat16": np.int8(0),
    "float16": np.int16(0),
    "float32": np.int32(0),
    "float64": np.int64(0),
}


def widen(bits: Any, tag: Any) -> Any:
    """Widen the bits of a weight to float32 (float64 stays), exactly; only inside compiled functions.

    ``tag`` is the entry of `TAGS` for the element type.
    """
    raise NotImplementedError("widen works in compiled functions only")


def _widen_bfloat16(bits: Any, tag: Any) -> Any:
    return float32_of_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


def _widen_float16(bits: Any, tag: Any) -> Any:
    return _FLOAT16_VALUES[bits]


def _widen_float32(bits: Any, tag: Any) -> Any:
    return float32_of_bits(bits)


def _widen_float64(bits: Any, tag: Any) -> Any:
    return float64_of_bits(bits)


@overload(widen, inline="always")  # type: ignore[untyped-decorator]
def _choose_widen(bits: Any, tag: Any) -> Any:
    return {
        types.int8: _widen_bfloat16,
        types.int16: _widen_float16,
        types.int32: _widen_float32,
        types.int64: _widen_float64,
    }[tag]
