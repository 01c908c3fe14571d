"""Generations that exist already, in the layouts in which they are usually kept.

Read are ckptlin's own samples, files with an answer a row or a list of answers a row, the JSON of the paper's
code (``generated_texts``, ``gt``) and verl's validation dumps (``input``, ``output``, ``gts``).  What a field
means is found out by its name; what a file does not say, such as whether an answer was finished, stays unknown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.grading import Completion
from ckptlin.grading.boxes import boxed_answer
from ckptlin.problems import Problem, load_problems
from ckptlin.problems.fields import MalformedRow
from ckptlin.problems.load import read_rows

__all__ = ["Saved", "read_saved", "sample_files"]

_LISTS = ("responses", "samples", "completions", "outputs", "generations", "generated_texts", "output_list")
_SINGLES = (
    "response",
    "completion",
    "output",
    "generation",
    "text",
    "generated_text",
    "model_output",
    "content",
)
_PROBLEMS = ("problem", "question", "prompt", "input", "question_content")
_ANSWERS = ("answer", "gt", "gts", "ground_truth", "final_answer", "reference_answer", "target")
_IDS = ("id", "problem_id", "unique_id", "question_id", "index", "idx")
_COUNTS = ("num_tokens", "completion_tokens", "num_output_tokens", "response_length")
_EVALUATION = "problems.jsonl"


@dataclass(frozen=True)
class Saved:
    """Saved answers, with their problems.

    Attributes
    ----------
    path : Path
    layout : str
        How it was read.
    problems : tuple of Problem
        In the order in which the file has them.
    completions : tuple of tuple of Completion
        Of each problem; ``finished`` is true where it is not known.
    finished : tuple of tuple of bool, or None
        None where the file does not say it of every answer.
    num_tokens : tuple of tuple of int, or None
        None where the file does not say it of every answer.
    notes : tuple of str
        What was not as usual, for the user.
    """

    path: Path
    layout: str
    problems: tuple[Problem, ...]
    completions: tuple[tuple[Completion, ...], ...]
    finished: tuple[tuple[bool, ...], ...] | None
    num_tokens: tuple[tuple[int, ...], ...] | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    finished: bool | None
    num_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    id: str | None
    problem: str | None
    answer: str | None
    number: Any
    answers: list[_Answer]
    extra: Mapping[str, Any]
    is_list: bool


def sample_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files of samples that a path names: itself, or those of an evaluation's directory.

    Raises
    ------
    InputError
        If there is nothing there, or a directory holds no samples.
    """
    found = Path(path)
    if not found.is_dir():
        if not found.is_file():
            raise InputError(
                f"there is no file {found}; give one with saved answers, or an evaluation's directory"
            )
        return (found,)
    files = tuple(sorted((found / "samples").glob("*.jsonl"), key=_by_numbers))
    if not files:
        raise InputError(f"the directory {found} holds no samples/*.jsonl; give an evaluation's, or a file")
    return files


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Order step-30 before step-120."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_saved(path: str | Path, *, data: Sequence[Problem] | None = None) -> Saved:
    """Read a file of saved answers.

    Parameters
    ----------
    path : str or Path
        ``.jsonl``, ``.json`` with a list, or ``.parquet``.
    data : sequence of Problem, optional
        Where problems and right answers are taken from; joined by the problem's text, which a prompt may have
        more words around, else by id.  Without it the rows themselves must have them, or, for ckptlin's own
        samples, ``problems.jsonl`` in the directory above.

    Raises
    ------
    InputError
        If the file cannot be read, is in no known layout, has a malformed row, or has answers to problems that
        are not among ``data``.
    """
    path = Path(path)
    notes: list[str] = []
    lines = [(place, _row(path, place, row)) for place, row in _complete(path, notes)]
    if not lines:
        raise InputError(f"{path} holds no answers")
    beside = path.parent.parent / _EVALUATION
    if data is None and path.parent.name == "samples" and beside.is_file():
        data = load_problems(beside)
    rows = [row for _, row in lines]
    groups = _grouped(path, lines, notes)
    problems = _joined(path, groups, data, notes) if data is not None else [_problem(path, g) for g in groups]
    answers = [[answer for row in group for answer in row.answers] for group in groups]
    for problem, given in zip(problems, answers, strict=True):
        if not given:
            raise InputError(f"{path} has no answer to problem {problem.id}; an empty list of answers is none")
    flat = [answer for given in answers for answer in given]
    counts = {len(given) for given in answers}
    if len(counts) > 1:
        notes.append(f"problems have from {min(counts)} to {max(counts)} answers; each problem weighs the same")
    ended = all(answer.finished is not None for answer in flat)
    if not ended:
        notes.append("whether answers were finished is not known, and so the share that was cut off is not")
    return Saved(
        path,
        "a list of answers a row" if rows[0].is_list else "an answer a row",
        tuple(problems),
        tuple(
            tuple(Completion(answer.text, answer.finished is not False) for answer in given)
            for given in answers
        ),
        tuple(tuple(bool(answer.finished) for answer in given) for given in answers) if ended else None,
        tuple(tuple(answer.num_tokens or 0 for answer in given) for given in answers)
        if all(answer.num_tokens is not None for answer in flat)
        else None,
        tuple(notes),
    )


def _complete(path: Path, notes: list[str]) -> list[tuple[str, Any]]:
    """Read the rows; a last line without an end, which a kill has cut off, is none."""
    rows = list(read_rows(path))
    if path.suffix == ".jsonl" and rows and isinstance(rows[-1][1], MalformedRow):
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                rows.pop()
                notes.append("the last line is cut off, and left out")
    return rows


def _row(path: Path, place: str, row: Any) -> _Row:
    if isinstance(row, MalformedRow):
        raise InputError(f"{path}, {place} {row}; correct the file")
    if not isinstance(row, Mapping):
        raise InputError(f"{path}, {place} is a {type(row).__name__}; expected an object with fields")
    fields = dict(row)
    answers, is_list, taken = _answers(path, place, fields)
    names = {
        "problem": _first(fields, _PROBLEMS),
        "answer": _first(fields, _ANSWERS),
        "id": _first(fields, _IDS),
    }
    known = {taken, *names.values()}
    right = fields.get(names["answer"]) if names["answer"] else None
    if right is None and isinstance(fields.get("reward_model"), Mapping):
        right = fields["reward_model"].get("ground_truth")
    if isinstance(right, list) and len(right) == 1:
        right = right[0]
    if isinstance(right, Mapping | list | bool):
        raise InputError(f"{path}, {place} has {right!r:.60} as {names['answer']}; expected text or a number")
    number = fields.get("sample", fields.get("response_id"))
    return _Row(
        id=None if names["id"] is None or fields[names["id"]] is None else str(fields[names["id"]]),
        problem=None if names["problem"] is None else _text_of_problem(path, place, fields[names["problem"]]),
        # The paper's code keeps its answers as \boxed{7}.
        answer=None if right is None else boxed_answer(str(right)) or str(right),
        number=number,
        answers=answers,
        # Token ids have been counted, and would fill the memory.
        extra={name: value for name, value in fields.items() if name not in known and name != "token_ids"},
        is_list=is_list,
    )


def _answers(path: Path, place: str, fields: Mapping[str, Any]) -> tuple[list[_Answer], bool, str]:
    """Find the answers of a row: a list, or one; and the field that has them."""
    several = next((name for name in (*_LISTS, *_SINGLES) if isinstance(fields.get(name), list)), None)
    if several is not None:
        items = fields[several]
        reasons = [fields.get(name) for name in ("finish_reasons", "finish_reason", "finished")]
        parallel = next(
            (r for r in reasons if isinstance(r, list) and len(r) == len(items)), [None] * len(items)
        )
        found = []
        for item, reason in zip(items, parallel, strict=True):
            inner = dict(item) if isinstance(item, Mapping) else {"text": item}
            if reason is not None:
                inner["finished" if isinstance(reason, bool) else "finish_reason"] = reason
            name = _first(inner, _SINGLES)
            if name is None or not isinstance(inner[name], str):
                raise InputError(
                    f"{path}, {place} has {item!r:.60} among its {several}; expected text, or an object with it"
                )
            found.append(_answer(inner, inner[name]))
        return found, True, several
    single = next((name for name in (*_SINGLES, *_LISTS) if isinstance(fields.get(name), str)), None)
    if single is None:
        raise InputError(
            f"{path}, {place} has the fields {', '.join(map(str, fields)) or '(none)'}, and none of them holds "
            f"answers; read are an answer a row ({', '.join(_SINGLES)}), a list of answers a row "
            f"({', '.join(_LISTS)}), and an evaluation's directory"
        )
    return [_answer(fields, fields[single])], False, single


def _answer(fields: Mapping[str, Any], text: str) -> _Answer:
    finished: bool | None = None
    if isinstance(fields.get("finished"), bool):
        finished = fields["finished"]
    elif isinstance(fields.get("truncated"), bool):
        finished = not fields["truncated"]
    elif isinstance(fields.get("finish_reason"), str):
        finished = fields["finish_reason"] != "length"
    counted = next((fields[n] for n in _COUNTS if isinstance(fields.get(n), int)), None)
    if counted is None and isinstance(fields.get("token_ids"), list):
        counted = len(fields["token_ids"])
    return _Answer(text, finished, counted)


def _grouped(path: Path, lines: Sequence[tuple[str, _Row]], notes: list[str]) -> list[list[_Row]]:
    """Put the rows of one problem together: by its id, or by its text where ids tell rows apart."""
    rows = [row for _, row in lines]
    by_id = all(row.id is not None for row in rows)
    by_text = all(row.problem is not None for row in rows)
    if by_id and by_text and len({row.id for row in rows}) == len(rows) > len({row.problem for row in rows}):
        by_id = False
        notes.append("ids tell rows apart and not problems; rows with the same text are one problem")
    if not by_id and not by_text:
        place = next((place for place, row in lines if row.id is None and row.problem is None), lines[0][0])
        raise InputError(
            f"{path}, {place} does not tell which problem it answers; give each row one of "
            f"{', '.join(_IDS)}, or one of {', '.join(_PROBLEMS)}"
        )
    groups: dict[Any, list[_Row]] = {}
    seen: set[tuple[Any, Any]] = set()
    for place, row in lines:
        key = row.id if by_id else row.problem
        if row.number is not None and not row.is_list:
            if (key, str(row.number)) in seen:
                raise InputError(
                    f"{path}, {place} has sample {row.number} of problem {key!r:.60} a second time"
                )
            seen.add((key, str(row.number)))
        group = groups.setdefault(key, [])
        if group and (group[0].problem, group[0].answer) != (row.problem, row.answer):
            what = "text" if group[0].problem != row.problem else "right answer"
            raise InputError(f"{path}, {place} has another {what} for problem {key!r:.60} than a row before it")
        group.append(row)
    return list(groups.values())


def _problem(path: Path, group: Sequence[_Row]) -> Problem:
    row = group[0]
    text = row.problem or f"problem {row.id}"
    return Problem(text, row.answer, id=row.id or text[:60], extra=row.extra)


def _joined(
    path: Path, groups: Sequence[Sequence[_Row]], data: Sequence[Problem], notes: list[str]
) -> list[Problem]:
    """Find each group's problem in the data."""
    texts = {_plain(problem.problem): problem for problem in data}
    ids = {problem.id: problem for problem in data}
    found: list[Problem] = []
    missing: list[str] = []
    for group in groups:
        row = group[0]
        own = None if row.problem is None else _plain(row.problem)
        problem = None if own is None else texts.get(own)
        if problem is None and row.id is not None and row.id in ids:
            problem = ids[row.id]
            # With a prompt's words around it.
            if own is not None and _plain(problem.problem) not in own and own not in _plain(problem.problem):
                problem = None
        if problem is None and own is not None:
            inside = [problem for text, problem in texts.items() if text in own]
            problem = max(inside, key=lambda p: len(p.problem)) if inside else None
        if problem is None:
            missing.append(row.id or (row.problem or "")[:60])
        else:
            found.append(problem)
    if missing:
        raise InputError(
            f"{path} has answers to {len(missing):,} of {len(groups):,} problems that are not in the data, the "
            f"first of them {missing[0]!r}; neither text nor id is there, so give the data it was made with"
        )
    if len({problem.id for problem in found}) < len(found):
        raise InputError(f"{path} has several problems that are the same one of the data; check its ids")
    if len(found) < len(data):
        notes.append(f"{len(data) - len(found):,} of {len(data):,} problems of the data have no answer here")
    return [replace(problem, id=problem.id or str(i)) for i, problem in enumerate(found)]


def _text_of_problem(path: Path, place: str, value: Any) -> str | None:
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        users = [m.get("content") for m in value if isinstance(m, Mapping) and m.get("role") == "user"]
        value = users[-1] if users else value[-1].get("content")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise InputError(f"{path}, {place} has {value!r:.60} as its problem; expected text or chat messages")
    return value


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if fields.get(name) is not None), None)


def _plain(text: str) -> str:
    return " ".join(text.split())
