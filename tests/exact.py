"""Arithmetic without rounding, to hold float64 arithmetic against."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, inf, log2

import numpy as np

from ckptlin.dtypes import TensorDType, from_zarr

__all__ = ["FLOATS", "fitted_value", "is_near_tie", "nearest"]

FLOATS = tuple(from_zarr(name) for name in ("float64", "float32", "float16", "bfloat16"))
# Exponent of the largest power of two, and of the spacing of the smallest numbers.
_EXPONENTS = {"float64": (1023, -1074), "float32": (127, -149), "float16": (15, -24), "bfloat16": (127, -133)}


def _spacing(value: Fraction, dtype: TensorDType) -> Fraction:
    """The distance between neighbours of the dtype around a value."""
    exponent = floor(log2(abs(value.numerator))) - floor(log2(value.denominator))
    exponent += (Fraction(2) ** (exponent + 1) <= abs(value)) - (Fraction(2) ** exponent > abs(value))
    return Fraction(2) ** max(exponent - dtype.mantissa_bits, _EXPONENTS[dtype.zarr][1])


def nearest(value: Fraction, dtype: TensorDType) -> float:
    """Round an exact value to the nearest number of a dtype, ties to even; infinity beyond the largest."""
    if value == 0:
        return 0.0
    spacing = _spacing(value, dtype)
    rounded = round(value / spacing) * spacing  # Python rounds fractions half to even
    if abs(rounded) >= Fraction(2) ** (_EXPONENTS[dtype.zarr][0] + 1):
        return inf if rounded > 0 else -inf
    return float(rounded)


def is_near_tie(value: Fraction, dtype: TensorDType, error: float) -> bool:
    """Whether an error of that size could move a value to another number of the dtype."""
    margin = Fraction(error)
    return nearest(value - margin, dtype) != nearest(value + margin, dtype)


def fitted_value(steps: Sequence[int], values: Sequence[float], target: int) -> Fraction:
    """The value of the least-squares line at a step."""
    xs, ys = [Fraction(s) for s in steps], [Fraction(float(v)) for v in np.asarray(values, np.float64)]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope /= sum((x - mean_x) ** 2 for x in xs)
    return mean_y + slope * (target - mean_x)
