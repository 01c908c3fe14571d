"""The refusal of NaN and infinity, where a number is needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.errors import NonFiniteError
from ckptlin.trajectory import TensorSpec

__all__ = ["require_finite"]


def require_finite(spec: TensorSpec, steps: Sequence[int], bits: np.ndarray[Any, Any]) -> None:
    """Raise if a weight is NaN or infinite.

    Parameters
    ----------
    spec : TensorSpec
    steps : sequence of int
        Step of each row.
    bits : numpy.ndarray
        ``(len(steps), num_params)`` of the bits dtype.

    Raises
    ------
    NonFiniteError
        Names tensor, step and how many in this part of the tensor.
    """
    for step, row in zip(steps, bits.view(spec.dtype.numpy), strict=True):
        finite = np.isfinite(row)
        if not finite.all():
            num_nan = int(np.isnan(row).sum())
            num_infinite = int((~finite).sum()) - num_nan
            counted = " and ".join(
                f"{number} {what}" for number, what in ((num_nan, "NaN"), (num_infinite, "infinite")) if number
            )
            raise NonFiniteError(
                f"tensor `{spec.name}` has {counted} weights at step {step}; "
                "leave the step out with --steps, or the tensor with --exclude"
            )
