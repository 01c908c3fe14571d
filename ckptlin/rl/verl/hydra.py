"""Values as Hydra's command line reads them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckptlin.errors import InputError

__all__ = ["hydra_value"]


def hydra_value(value: Any) -> str:
    r"""Write a value so that Hydra reads it back as it is.

    Raises
    ------
    InputError
        If it cannot be written: NaN, a text with ``${``, which Hydra takes for a reference, or an object.

    Examples
    --------
    >>> hydra_value([True, None, 1e-6, "it's"])
    "[true,null,1e-06,'it\\'s']"
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and not math.isnan(value):
        return repr(value)
    if isinstance(value, str):
        if "${" in value or not value.replace("\n", " ").isprintable():
            raise InputError(
                f"{value!r} cannot be given to verl: its command line takes ${{ for a reference and has no "
                "control characters; choose another name"
            )
        # Only backslashes before a quote are special.
        return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    raise InputError(f"{value!r} cannot be given to verl; give a text, a number, true, false, null or a list")
