"""What the codecs of weights are called in metadata and in chunks, and what they take their arguments from.

Apart from the codecs themselves, whose classes bring zarr with them: reading and writing chunks does without.
"""

from typing import Any

import numpy as np

from ckptlin.kernels.step_delta import FLOAT, SIGNED, UNSIGNED

__all__ = ["BIT_PACK", "BIT_PACK_MAGIC", "STEP_DELTA", "order_kind"]

STEP_DELTA = "ckptlin.step_delta"
BIT_PACK = "ckptlin.bit_pack"
# Eight bytes, so that what follows lies as it would without them.
BIT_PACK_MAGIC = b"ckptpack"


def order_kind(dtype: np.dtype[Any]) -> int:
    """Tell how the bits of a dtype are ordered: the argument of the kernels."""
    if dtype.kind in "ub":
        return UNSIGNED
    return SIGNED if dtype.kind == "i" else FLOAT
