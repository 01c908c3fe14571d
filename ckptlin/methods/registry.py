"""Methods by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from ckptlin.errors import SelectionError
from ckptlin.methods.base import Method
from ckptlin.methods.ols import anchored, ols
from ckptlin.methods.two_point import two_point

__all__ = ["METHODS", "MethodEntry", "get_method"]


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method and what goes with it.

    Attributes
    ----------
    name : str
    function : Method
    description : str
        One line.
    keep : tuple of str
        Patterns of tensors that keep their last value unless the user says otherwise.
    """

    name: str
    function: Method
    description: str
    keep: tuple[str, ...] = ()


METHODS: Mapping[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry("ols", ols, "the least-squares line through all checkpoints"),
        MethodEntry("two-point", two_point, "the line through two checkpoints, as in the paper", ("norm",)),
        MethodEntry("anchored", anchored, "from the last checkpoint on with the least-squares slope"),
    )
}


def get_method(name: str) -> MethodEntry:
    """Look a method up; SelectionError if there is none of that name."""
    if name not in METHODS:
        raise SelectionError(f"there is no method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]
