"""A user's own function as a grader."""

import importlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from ckptlin.errors import GradingError, InputError
from ckptlin.grading.grader import Completion, check_lengths, check_score
from ckptlin.problems.problem import Problem

__all__ = ["FunctionGrader", "load_function", "load_object"]


class FunctionGrader:
    """Score by a function ``(completion: str, problem: Problem) -> float`` from 0 to 1.

    Parameters
    ----------
    function : callable or str
        The function, or where it is: ``package.module:function``.
    name : str, optional
        What it is called; by default where it is.

    Raises
    ------
    InputError
        If there is no such function.

    Examples
    --------
    >>> grader = FunctionGrader(lambda completion, problem: completion.startswith("4") * 1.0, name="four")
    >>> grader.grade([Completion("42", True), Completion("24", True)], [Problem("?")] * 2)
    [1.0, 0.0]
    """

    def __init__(self, function: Callable[[str, Problem], Any] | str, *, name: str | None = None) -> None:
        self._function = load_function(function) if isinstance(function, str) else function
        if not callable(self._function):
            raise InputError(f"a reward function must be callable, but {function!r} is not")
        qualified = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        where = f"{getattr(self._function, '__module__', None) or '?'}:{qualified}"
        self._name = name or (function if isinstance(function, str) else where)

    @property
    def name(self) -> str:
        """What it is called in records."""
        return self._name

    @property
    def notes(self) -> list[str]:
        """Nothing: what is out of the ordinary in a function is an error."""
        return []

    def check(self, problems: Sequence[Problem]) -> None:
        """Accept all problems; what a function needs it alone knows."""

    def grade(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
        """Call the function for each completion.

        Raises
        ------
        GradingError
            If it raises, or returns no number from 0 to 1: None, True and NaN are none.
        """
        check_lengths(completions, problems)
        return [self._score(*pair) for pair in zip(completions, problems, strict=True)]

    def _score(self, completion: Completion, problem: Problem) -> float:
        try:
            score = self._function(completion.text, problem)
        except Exception as error:
            raise GradingError(
                f"the reward function {self.name} raised {type(error).__name__}: {error} for problem "
                f"{problem.id}; --debug shows where"
            ) from error
        return check_score(score, self.name, problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def load_function(place: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises
    ------
    InputError
        If the name is no such thing, the module cannot be found, or has no such function.
    """
    found = load_object(place, what="function")
    if not callable(found):
        raise InputError(f"{place} is a {type(found).__name__}, no function; name one that can be called")
    function: Callable[..., Any] = found
    return function


def load_object(place: str, *, what: str) -> Any:
    """Import ``package.module:object``.

    Parameters
    ----------
    place : str
    what : str
        What is looked for, for the errors.

    Raises
    ------
    InputError
        If the name is no such thing, the module cannot be found or fails, or has no such object.
    """
    module_name, _, qualified = place.partition(":")
    if not all(part.isidentifier() for name in (module_name, qualified) for part in name.split(".")):
        raise InputError(f"{place!r} names no {what}; write package.module:{what}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"there is no module {error.name} to take {place} from; install it, or put its directory on "
            "PYTHONPATH"
        ) from error
    except Exception as error:
        raise InputError(
            f"importing {module_name} to take {place} from it raised {type(error).__name__}: {error}; correct "
            "the module"
        ) from error
    for part in qualified.split("."):
        if not hasattr(found, part):
            raise InputError(f"the module {module_name} has no {qualified}; name a {what} that it has")
        found = getattr(found, part)
    return found
