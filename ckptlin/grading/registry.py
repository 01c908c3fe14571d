"""Graders by name: ckptlin's own, and those that other packages add."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from ckptlin.errors import InputError, SelectionError
from ckptlin.grading.code import CodeGrader
from ckptlin.grading.exact import ExactGrader
from ckptlin.grading.function import FunctionGrader
from ckptlin.grading.grader import Grader
from ckptlin.grading.math import MathGrader

__all__ = ["GRADERS", "GraderEntry", "all_graders", "open_grader"]

_GROUP = "ckptlin.graders"


@dataclass(frozen=True, slots=True)
class GraderEntry:
    """A grader that can be opened.

    Attributes
    ----------
    name : str
    make : callable
        Makes the grader; its keyword arguments are the grader's parameters.
    description : str
        One line for the user.
    """

    name: str
    make: Callable[..., Grader]
    description: str


# Those of ckptlin itself; `all_graders` has those of other packages too.
GRADERS: Mapping[str, GraderEntry] = {
    entry.name: entry
    for entry in (
        GraderEntry("exact", ExactGrader, "the whole text is the answer"),
        GraderEntry("math", MathGrader, "the last boxed answer, compared by Math-Verify"),
        GraderEntry("code", CodeGrader, "the last block of code, run on the problem's tests in a sandbox"),
        GraderEntry("function", FunctionGrader, "a function of your own, package.module:function"),
    )
}


@cache
def all_graders() -> Mapping[str, GraderEntry]:
    """Return every grader by name: ckptlin's own, then those that installed packages add.

    A package adds a grader by an entry point in the group ``ckptlin.graders`` that names a `GraderEntry`, or a
    function as `FunctionGrader` takes it, which then has the entry point's name.

    Raises
    ------
    InputError
        If an entry point names something else, or takes a name that is taken.
    """
    found = dict(GRADERS)
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        loaded = point.load()
        if isinstance(loaded, GraderEntry):
            entry = loaded
        elif callable(loaded) and not isinstance(loaded, type):
            entry = GraderEntry(point.name, _maker(loaded, point.name), f"{point.value}, a function")
        else:
            raise InputError(
                f"entry point {point.name} of the group {_GROUP} ({point.value}) is a {type(loaded).__name__}, "
                "neither a GraderEntry nor a function; correct or uninstall the package"
            )
        if entry.name in found:
            raise InputError(
                f"entry point {point.name} of the group {_GROUP} ({point.value}) takes the name of the grader "
                f"{entry.name}, which is there already; correct or uninstall the package"
            )
        found[entry.name] = entry
    return found


def open_grader(name: str, **parameters: Any) -> Grader:
    """Make a grader; use it in a ``with`` statement.

    Parameters
    ----------
    name : str
        Of a grader, or ``package.module:function``.
    **parameters : Any
        As the grader takes them.

    Raises
    ------
    SelectionError
        If there is no grader of that name, or it has no such parameter.
    InputError
        If a parameter's value makes no sense.
    MissingExtraError
        If a package that it needs is not installed.

    Examples
    --------
    >>> open_grader("exact", strip=True).name
    'exact'
    """
    if ":" in name:
        return open_grader("function", function=name, **parameters)
    entry = GRADERS.get(name) or all_graders().get(name)
    if entry is None:
        raise SelectionError(
            f"there is no grader {name!r}; choose {', '.join(sorted(all_graders()))}, or name a function, "
            "package.module:function"
        )
    known = inspect.signature(entry.make).parameters
    for parameter in parameters:
        if parameter not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise SelectionError(f"the grader {name} has no parameter {parameter!r}; {there}")
    for parameter, described in known.items():
        if described.default is inspect.Parameter.empty and parameter not in parameters:
            raise InputError(f"the grader {name} needs its parameter {parameter}; give it")
    return entry.make(**parameters)


def _maker(function: Callable[..., Any], name: str) -> Callable[[], Grader]:
    def make() -> Grader:
        return FunctionGrader(function, name=name)

    return make
