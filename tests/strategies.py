"""Hypothesis strategies: element types, bits with every awkward value, shapes, names of tensors."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptlin.dtypes import DTYPES, TensorDType, from_zarr

__all__ = [
    "FITTED",
    "element_types",
    "moving_weights",
    "random_weights",
    "shapes",
    "special_bits",
    "tensor_names",
    "training_steps",
    "trajectories",
]

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
        with np.errstate(over="ignore"):
            values = values[:1] + np.cumsum(moves, axis=0, dtype=np.int64).astype(dtype.bits)
    return dtype, values


def shapes(max_dims: int = 4, max_side: int = 9) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of tensors, those without dimensions or without elements among them."""
    return st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)


def tensor_names() -> st.SearchStrategy[str]:
    """Names of tensors, up to what fits into a file name."""
    characters = st.characters(exclude_categories=["Cs"])
    awkward = st.text(st.sampled_from("./%_\\az0\n"), max_size=8)
    return st.sampled_from(_NASTY_NAMES) | awkward | st.text(characters, max_size=20)


# What a regression is fed with: steps, and weights (no bits) of the types that are fitted.

FITTED = tuple(from_zarr(name) for name in ("bfloat16", "float16", "float32", "float64"))
# float64 beyond these has squares, or moves in its last bit by less, than float64 can hold.
_LARGEST_EXPONENT = {"bfloat16": 37, "float16": 4, "float32": 37, "float64": 110}
_FLOAT64_SMALLEST = 1e-110
_KINDS = ("constant", "flips", "few", "last bit", "walk", "line", "outlier", "level", "noise")


@st.composite
def training_steps(draw: st.DrawFn, max_steps: int = 200) -> tuple[int, ...]:
    """Ascending steps, 2 to ``max_steps`` of them, up to 10⁹ and at any distances."""
    num_steps = draw(st.integers(2, min(max_steps, 20)) | st.integers(2, max_steps))
    first = draw(st.sampled_from([0, 1, 10**9]) | st.integers(0, 10**9))
    if draw(st.booleans()):
        gaps = [draw(st.integers(1, 10**4))] * (num_steps - 1)
    else:
        largest = draw(st.sampled_from([2, 1000, 10**9 // num_steps]))
        gaps = draw(st.lists(st.integers(1, largest), min_size=num_steps - 1, max_size=num_steps - 1))
    return tuple(int(s) for s in first + np.cumsum([0, *gaps]))


@st.composite
def moving_weights(draw: st.DrawFn, dtype: TensorDType, num_steps: int, num_params: int = 40) -> np.ndarray:
    """Finite weights of shape (num_steps, num_params); each moves in one of many ways, at any scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.sampled_from(_KINDS), min_size=1, max_size=len(_KINDS), unique=True))
    largest = _LARGEST_EXPONENT[dtype.zarr]
    typical = (-3, 0) if draw(st.booleans()) else (-largest - 8, largest)
    scale = 10.0 ** rng.uniform(*typical, num_params)
    first = rng.normal(size=num_params) * rng.integers(0, 2, num_params)
    t = np.arange(num_steps)[:, None] / num_steps
    noise = rng.normal(size=(num_steps, num_params))
    amount = 10.0 ** rng.uniform(-8, 1, num_params)
    row = rng.integers(0, num_steps, num_params)
    moves = {
        "constant": 0 * noise,
        "flips": 0 * noise,
        "few": rng.integers(0, 3, noise.shape),
        "last bit": 0 * noise,
        "walk": noise.cumsum(axis=0),
        "line": t + 0.01 * noise,
        "outlier": 1e-3 * noise + (np.arange(num_steps)[:, None] == row),
        "level": 1.0 * (np.arange(num_steps)[:, None] >= row),
        "noise": noise,
    }
    kind = rng.choice(kinds, num_params)
    with np.errstate(over="ignore"):
        weights = np.stack(
            [scale[i] * (first[i] + amount[i] * moves[kind[i]][:, i]) for i in range(num_params)], axis=1
        ).astype(dtype.numpy)
    weights[~np.isfinite(weights)] = 1
    if dtype.zarr == "float64":
        weights[np.abs(weights) < _FLOAT64_SMALLEST] = 0
    weights[:, kind == "constant"] = weights[:1, kind == "constant"]
    signs = rng.integers(0, 2, noise.shape) * 2.0 - 1
    weights[:, kind == "flips"] = (0 * signs[:, kind == "flips"]).astype(dtype.numpy)
    by_last_bit = (kind == "last bit") & (weights[0] != 0)
    last_bits = rng.integers(0, 2, (num_steps, by_last_bit.sum()), dtype=dtype.bits)
    weights.view(dtype.bits)[:, by_last_bit] ^= last_bits
    return weights


@st.composite
def random_weights(draw: st.DrawFn, dtype: TensorDType, num_steps: int) -> np.ndarray:
    """Finite weights of any bits at all, ±0, subnormal and largest numbers among them."""
    largest = dtype.numpy.type(10.0 ** _LARGEST_EXPONENT[dtype.zarr])
    shape = (num_steps, draw(st.integers(1, 6)))
    weights = draw(hnp.arrays(dtype.bits, shape, elements=bits(dtype))).view(dtype.numpy)
    with np.errstate(invalid="ignore"):
        weights[~(np.abs(weights) <= largest)] = largest
    if dtype.zarr == "float64":
        weights[np.abs(weights) < _FLOAT64_SMALLEST] *= 0
    return weights
