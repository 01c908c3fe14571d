"""Problems of a time: those that were published from one day to another.

A model cannot have been trained on what came after it, and its score on a benchmark that grows depends on which
problems are asked; so the window stands in the record of a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from ckptlin.errors import InputError
from ckptlin.problems.problem import Problem

__all__ = ["Window", "as_window"]

# As LiveCodeBench calls it, and others.
_FIELDS = ("contest_date", "date")


@dataclass(frozen=True, slots=True)
class Window:
    """From a day to a day, both included.

    Examples
    --------
    >>> window = as_window("2024-08-01:2025-01-31")
    >>> window.holds(Problem("?", extra={"contest_date": "2025-01-31T00:00:00"}))
    True
    """

    first: date
    last: date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise InputError(f"the window {self} ends before it begins; give the earlier day first")

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def holds(self, problem: Problem) -> bool:
        """Tell whether a problem is of this time.

        Raises
        ------
        InputError
            If it has no date, or one that cannot be read.
        """
        name = next((name for name in _FIELDS if problem.extra.get(name) is not None), None)
        if name is None:
            raise InputError(
                f"the window {self} was asked for, but problem {problem.id} has no date; give each the field "
                f"{' or '.join(_FIELDS)}, or leave the window out"
            )
        try:
            day = _day(problem.extra[name])
        except (ValueError, TypeError):
            raise InputError(
                f"the window {self} was asked for, but problem {problem.id} has {problem.extra[name]!r:.60} as "
                f"{name}; expected a date such as 2024-08-01"
            ) from None
        return self.first <= day <= self.last

    def to_list(self) -> list[str]:
        """Return its ends as text."""
        return [str(self.first), str(self.last)]


def as_window(window: str | Sequence[str] | Window | None) -> Window | None:
    """Read ``FROM:TO``, or its two days.

    Raises
    ------
    InputError
        If it is no such thing.
    """
    if window is None or isinstance(window, Window):
        return window
    days = window.split(":") if isinstance(window, str) else list(window)
    try:
        first, last = map(date.fromisoformat, days)
    except (ValueError, TypeError):
        raise InputError(
            f"the window {window!r} is none; give its first and its last day, as in 2024-08-01:2025-01-31"
        ) from None
    return Window(first, last)


def _day(value: Any) -> date:
    if isinstance(value, datetime):
        return value.date()
    return value if isinstance(value, date) else datetime.fromisoformat(value).date()
