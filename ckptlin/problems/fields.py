"""A problem from a row of somebody's data: which field is what, and what is refused.

Rows are plain data, as JSON and parquet give them.  Three layouts are told apart by their fields: flat ones;
chat messages in ``prompt``, as TRL has them; and verl's, which adds the answer in ``reward_model``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems.problem import Problem

__all__ = ["Columns", "MalformedRow", "Need", "problem_of_row", "require"]

Need = Literal["answer", "solution"]

# Ours first, then what public data sets call it; the first that a row has is taken, others go to `extra`.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt", "question_content"),
    "answer": ("answer", "final_answer", "ground_truth"),
    "solution": ("solution",),
    "id": ("id", "unique_id", "question_id"),
}


class MalformedRow(ValueError):
    """A row that is no problem; its message says what it has, and what was expected."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which field of a row is what.

    Attributes
    ----------
    named : mapping of str to str
        Of ``problem``, ``answer``, ``solution`` and ``id``, those that a user has named.
    """

    named: Mapping[str, str]

    def __post_init__(self) -> None:
        for ours in self.named:
            if ours not in _ALIASES:
                raise SelectionError(
                    f"there is no field {ours!r} to map a column to; map {', '.join(_ALIASES)}"
                )

    def find(self, ours: str, row: Collection[str]) -> str | None:
        """Return the name of the row's field for one of ours; None if it has none."""
        if ours in self.named:
            return self.named[ours] if self.named[ours] in row else None
        return next((name for name in _ALIASES[ours] if name in row), None)


def problem_of_row(row: Any, columns: Columns, *, number: int) -> Problem:
    """Read a row.

    Parameters
    ----------
    row : Any
        Plain data; a mapping, or it is refused.
    columns : Columns
    number : int
        Of the row, from 0; the problem's id where the row has none.

    Raises
    ------
    MalformedRow
        If it is no mapping, has no text, or an answer, solution or id of a kind that cannot be meant.
    """
    if not isinstance(row, Mapping):
        raise MalformedRow(
            f"is {_shown(row)}, but a problem is an object with fields such as problem and answer"
        )
    taken: dict[str, str] = {}
    for ours in _ALIASES:
        name = columns.find(ours, row)
        if name is not None:
            taken[ours] = name
    if "problem" not in taken:
        wanted = columns.named.get("problem") or ", ".join(_ALIASES["problem"])
        raise MalformedRow(f"has the fields {', '.join(map(str, row)) or '(none)'}, but none of {wanted}")
    extra = {str(name): value for name, value in row.items() if name not in taken.values()}
    text, earlier = _text(row[taken["problem"]], taken["problem"])
    if earlier:
        extra["earlier_messages"] = earlier
    answer = _scalar(row[taken["answer"]], taken["answer"]) if "answer" in taken else None
    if answer is None and "answer" not in columns.named:
        answer = _verl_answer(row)
    return Problem(
        problem=text,
        answer=answer,
        solution=_scalar(row[taken["solution"]], taken["solution"]) if "solution" in taken else None,
        id=(_scalar(row[taken["id"]], taken["id"]) if "id" in taken else None) or str(number),
        extra=extra,
    )


def require(problems: Sequence[Problem], need: Need | None, *, where: str) -> None:
    """Raise `InputError` if a problem lacks its answer or solution, as ``need`` says; it names the first."""
    if need is None:
        return
    if need not in ("answer", "solution"):
        raise SelectionError(f"problems can be asked for an answer or a solution, not for {need!r}")
    lacking = [problem for problem in problems if getattr(problem, need) is None]
    if lacking:
        names = " or ".join(_ALIASES[need])
        raise InputError(
            f"{len(lacking):,} of {len(problems):,} problems of {where} have no {need}, the first of them "
            f"problem {lacking[0].id}; give each the field {names}, or name the column that holds it"
        )


def _text(value: Any, name: str) -> tuple[str, list[dict[str, str]]]:
    """Return the problem's text, and the messages that come before it in a conversation."""
    if isinstance(value, str):
        if not value.strip():
            raise MalformedRow(f"has an empty {name}")
        return value, []
    if not isinstance(value, list) or not value:
        raise MalformedRow(f"has {_shown(value)} as {name}; expected text or chat messages")
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise MalformedRow(
                f"has {_shown(message)} in {name}; a message has a role and a content, both text"
            )
        messages.append({"role": message["role"], "content": message["content"]})
    if messages[-1]["role"] != "user":
        raise MalformedRow(f"has a {name} that ends with the role {messages[-1]['role']}; expected user")
    text = messages[-1]["content"]
    if not text.strip():
        raise MalformedRow(f"has a {name} that ends with an empty message")
    return text, messages[:-1]


def _scalar(value: Any, name: str) -> str | None:
    """Return text, or a number as text; None for what is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise MalformedRow(f"has {_shown(value)} as {name}; expected text or a number")
    # Data frames write NaN where there is nothing.
    if value is None or value != value or not str(value).strip():
        return None
    return str(value)


def _verl_answer(row: Mapping[str, Any]) -> str | None:
    model = row.get("reward_model")
    if not isinstance(model, Mapping):
        return None
    truth = model.get("ground_truth")
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    return _scalar(truth, "reward_model.ground_truth")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
