"""What a problem is, for training and for evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptlin.errors import InputError

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A problem whose answer can be verified.

    Attributes
    ----------
    problem : str
        What is asked, before any template.
    answer : str or None
        What a grader compares with.
    solution : str or None
        The way there, for supervised training.
    id : str
        What it is called in results; of one source each has its own.
    extra : mapping of str to Any
        All other fields of the source: tests of a program, level, subject; and ``earlier_messages``, the chat
        that comes before the problem.

    Examples
    --------
    >>> Problem("1+1=", "2").to_dict()
    {'problem': '1+1=', 'answer': '2'}
    """

    problem: str
    answer: str | None = None
    solution: str | None = None
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.problem, str) or not self.problem.strip():
            raise InputError(f"a problem must have a text, but {self._name} has {self.problem!r}")
        for name in ("answer", "solution"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"the {name} of {self._name} is {value!r}; it must be text, or None")

    @property
    def _name(self) -> str:
        return f"problem {self.id}" if self.id else "it"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without what it has not.

        Fields of `extra` stand beside the others; one of the same name becomes ``source_NAME``.
        """
        own = {"id": self.id or None, "problem": self.problem, "answer": self.answer, "solution": self.solution}
        return {name: value for name, value in own.items() if value is not None} | {
            f"source_{name}" if name in own else name: value for name, value in self.extra.items()
        }
