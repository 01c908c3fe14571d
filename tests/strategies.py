"""Hypothesis strategies: element types, bits with every awkward value, shapes, names of tensors."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptlin.dtypes import DTYPES, TensorDType

__all__ = ["element_types", "shapes", "special_bits", "tensor_names", "trajectories"]

# Names that a file system, zarr or xarray might take for something else.
_NASTY_NAMES = (
    "", ".", "..", "...", "/", "a/b", "../../etc/passwd", "\\", "__", "__x", "_x", "%", "%2F", "%25", "%zz",
    "zarr.json", ".zarray", "step", "STEP", "c", "c/0", "0", "weights", "files", " ", "a b", "\n", "\x00",
    "\x7f", "ä", "a\u0308", "重み", "🦉", "con", "~", "*", "?", "w.0", "w", "W",
)  # fmt: skip


def special_bits(dtype: TensorDType) -> list[int]:
    """Bits of zeros, infinities, NaNs of either sign and kind, the smallest and the largest numbers."""
    width = dtype.itemsize * 8
    sign = 1 << (width - 1)
    if dtype.zarr == "bool":
        return [0, 1]
    found = {0, 1, 2, sign - 2, sign - 1, sign, sign + 1, 2 * sign - 2, 2 * sign - 1}
    if dtype.mantissa_bits is not None:
        infinity = sign - (1 << dtype.mantissa_bits)
        quiet = 1 << (dtype.mantissa_bits - 1)
        for magnitude in (1 << dtype.mantissa_bits, infinity - 1, infinity, infinity + 1, infinity + quiet + 1):
            found |= {magnitude, magnitude | sign}
    return sorted(found)


def element_types() -> st.SearchStrategy[TensorDType]:
    """Every type of element that ckptlin can store."""
    return st.sampled_from(DTYPES)


def bits(dtype: TensorDType) -> st.SearchStrategy[int]:
    """Bits of one element."""
    most = 1 if dtype.zarr == "bool" else (1 << (8 * dtype.itemsize)) - 1
    return st.sampled_from(special_bits(dtype)) | st.integers(0, most)


@st.composite
def trajectories(draw: st.DrawFn, dtype: TensorDType | None = None) -> tuple[TensorDType, np.ndarray]:
    """An element type, and bits of shape (steps, parameters): random, or moving by a few units at a time."""
    dtype = dtype or draw(element_types())
    shape = (draw(st.integers(1, 20)), draw(st.integers(0, 40)))
    values = draw(hnp.arrays(dtype.bits, shape, elements=bits(dtype)))
    if dtype.zarr != "bool" and draw(st.booleans()):
        moves = draw(hnp.arrays(np.int8, shape, elements=st.integers(-2, 2)))
        values = (values[:1] + np.cumsum(moves, axis=0)).astype(dtype.bits)
    return dtype, values


def shapes(max_dims: int = 4, max_side: int = 9) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of tensors, those without dimensions or without elements among them."""
    return st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)


def tensor_names() -> st.SearchStrategy[str]:
    """Names of tensors, up to what fits into a file name."""
    characters = st.characters(exclude_categories=["Cs"])
    awkward = st.text(st.sampled_from("./%_\\az0\n"), max_size=8)
    return st.sampled_from(_NASTY_NAMES) | awkward | st.text(characters, max_size=20)
