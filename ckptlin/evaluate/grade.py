"""Grade generations that exist already; no model is needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptlin.atomic import write_file
from ckptlin.errors import InputError
from ckptlin.evaluate.metrics.paired import Comparison, compare
from ckptlin.evaluate.metrics.summary import Summary, summarise
from ckptlin.evaluate.saved import Saved, read_saved, sample_files
from ckptlin.evaluate.scoring import grade_answers
from ckptlin.evaluate.tasks import Task, open_task
from ckptlin.grading import Grader, open_grader
from ckptlin.problems import load_problems

__all__ = ["GradeResult", "GradedFile", "grade", "grade_saved"]

_DEFAULT_GRADER = "math"


@dataclass(frozen=True)
class GradedFile:
    """A file of saved answers, graded.

    Attributes
    ----------
    label : str
        What it is called in tables: the part of its path that tells it from others.
    saved : Saved
    scores : tuple of tuple of float
        Of each problem's answers, from 0 to 1.
    answers : tuple of tuple of (str or None), or None
        What each answered; None where the grader knows no answers.
    summary : Summary
    num_empty : int
        Answers without text, which count as wrong.
    share_truncated : float or None
        Of all answers those that were cut off; None where that is not known.
    notes : tuple of str
        What was out of the ordinary in reading and grading.
    """

    label: str
    saved: Saved
    scores: tuple[tuple[float, ...], ...]
    answers: tuple[tuple[str | None, ...], ...] | None
    summary: Summary
    num_empty: int
    share_truncated: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without the answers."""
        return {
            "file": str(self.saved.path),
            "label": self.label,
            "layout": self.saved.layout,
            "num_answers": sum(map(len, self.scores)),
            "num_empty": self.num_empty,
            "share_truncated": self.share_truncated,
            **self.summary.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class GradeResult:
    """What `grade` found.

    Attributes
    ----------
    grader : str
    grader_parameters : mapping of str to Any
    files : tuple of GradedFile
    comparisons : tuple of Comparison
        Of each file after the first with the first, on the same problems.
    notes : tuple of str
        On the comparisons.
    """

    grader: str
    grader_parameters: Mapping[str, Any]
    files: tuple[GradedFile, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def verdicts(self) -> list[str]:
        """Say of each file after the first how it compares with the first."""
        first, *others = self.files
        return [
            comparison.verdict(first=first.label, second=other.label)
            for other, comparison in zip(others, self.comparisons, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "grader": self.grader,
            "grader_parameters": dict(self.grader_parameters),
            "files": [file.to_dict() for file in self.files],
            "comparisons": [
                {
                    **comparison.to_dict(),
                    "first_label": self.files[0].label,
                    "second_label": other.label,
                    "verdict": verdict,
                }
                for other, comparison, verdict in zip(
                    self.files[1:], self.comparisons, self.verdicts(), strict=True
                )
            ],
            "notes": list(self.notes),
        }


def grade(
    paths: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    task: str | Path | Task | None = None,
    grader: str | None = None,
    grader_parameters: Mapping[str, Any] | None = None,
    ks: Sequence[int] | None = None,
    level: float = 0.95,
    seed: int = 0,
    common: bool = False,
    out: str | Path | None = None,
) -> GradeResult:
    """Grade files of saved answers, and compare each with the first.

    Parameters
    ----------
    paths : sequence of str or Path
        Files, or directories of evaluations, as `ckptlin.evaluate.saved` reads them.
    data : str or Path, optional
        Problems and their right answers, where the files have none.
    task : str, Path or Task, optional
        The task that was answered: its problems (those of ``data``, if that is given too) and its grader.
    grader : str, optional
        By default the task's, that of an evaluation's own record, or ``math``.
    grader_parameters : mapping of str to Any, optional
    ks : sequence of int, optional
        For pass@k and maj@k.
    level : float
        Of the intervals.
    seed : int
        Of what is drawn in them.
    common : bool
        Whether files with different problems are compared on those that both have.
    out : str or Path, optional
        A file to which every answer's score is written, JSONL.

    Raises
    ------
    InputError
        If a file cannot be read, a problem cannot be graded, or files that are compared have other problems.
    GradingError
        If a grader cannot start, or a user's function fails.
    DiskFullError
        If ``out`` cannot be written; what was there is then as it was.
    """
    files = [file for path in paths for file in sample_files(path)]
    if not files:
        raise InputError("no file to grade was given")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(f"{out} lies in no directory that exists; make {Path(out).parent} first")
    opened = None
    if task is not None:
        opened = task if isinstance(task, Task) else open_task(task, data=data)
    problems = opened.load() if opened else load_problems(data) if data is not None else None
    recorded, with_parameters = (
        (opened.grader, opened.grader_parameters) if opened else _recorded(files) or (_DEFAULT_GRADER, {})
    )
    name = grader or recorded
    own = with_parameters if name == recorded else {}
    parameters = {**own, **(grader_parameters or {})}
    saved = [read_saved(file, data=problems) for file in files]
    # Before hours of grading, not after them.
    shared = [_shared(saved[0], other, common) for other in saved[1:]]
    labels = _labels(files)
    graded = []
    for label, answers in zip(labels, saved, strict=True):
        with open_grader(name, **parameters) as opened_grader:
            try:
                opened_grader.check(answers.problems)
            except InputError as error:
                raise InputError(
                    f"{error}; an evaluation keeps no more of a problem than its answer: give --task or --data"
                ) from error
            graded.append(grade_saved(answers, opened_grader, label=label, ks=ks, level=level, seed=seed))
    comparisons: list[Comparison] = []
    notes: list[str] = []
    for other, pairs in zip(graded[1:], shared, strict=True):
        comparisons.append(
            compare(
                [graded[0].scores[i] for i, _ in pairs],
                [other.scores[j] for _, j in pairs],
                level=level,
                seed=seed,
            )
        )
        if len(pairs) < max(len(graded[0].scores), len(other.scores)):
            notes.append(
                f"{graded[0].label}, {other.label}: compared on the {len(pairs):,} problems that both have"
            )
    if out is not None:
        write_file(Path(out), "".join(map(_lines, graded)).encode(errors="replace"))
    return GradeResult(name, parameters, tuple(graded), tuple(comparisons), tuple(notes))


def grade_saved(
    saved: Saved,
    grader: Grader,
    *,
    label: str,
    ks: Sequence[int] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> GradedFile:
    """Grade the answers of one file by an open grader."""
    graded = grade_answers(grader, saved.problems, saved.completions)
    summary = summarise(
        graded.scores,
        votes=graded.votes,
        num_tokens=saved.num_tokens,
        finished=saved.finished,
        empty=[[not completion.text.strip() for completion in given] for given in saved.completions],
        ks=ks,
        level=level,
        seed=seed,
    )
    ended = None if saved.finished is None else [done for given in saved.finished for done in given]
    cut = None if ended is None else 1 - sum(ended) / len(ended)
    notes = (*saved.notes, *graded.notes)
    return GradedFile(label, saved, graded.scores, graded.answers, summary, graded.num_empty, cut, notes)


def _shared(first: Saved, other: Saved, common: bool) -> list[tuple[int, int]]:
    """Return the places of the problems that both have."""
    places = {" ".join(problem.problem.split()): i for i, problem in enumerate(first.problems)}
    pairs = [
        (places[text], j)
        for j, problem in enumerate(other.problems)
        if (text := " ".join(problem.problem.split())) in places
    ]
    differ = not len(pairs) == len(first.problems) == len(other.problems)
    if not pairs or (differ and not common):
        do = "leave one out" if not pairs else "compare on those alone (--common), or grade them one by one"
        raise InputError(
            f"{first.path} has {len(first.problems):,} problems and {other.path} {len(other.problems):,}, of "
            f"which {len(pairs):,} are the same; {do}"
        )
    return pairs


def _recorded(files: Sequence[Path]) -> tuple[str, Mapping[str, Any]] | None:
    """Return the grader, with its parameters, that evaluations' own records name.

    Raises
    ------
    InputError
        If they name different ones.
    """
    found: dict[Path, Any] = {}
    for directory in dict.fromkeys(file.parent.parent for file in files if file.parent.name == "samples"):
        path = directory / "evaluation.json"
        try:
            grader = json.loads(path.read_bytes())["grader"]
            found[directory] = (str(grader["name"]), dict(grader.get("parameters", {})))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    if not found:
        return None
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise InputError(
                f"{first} was graded by {found[first][0]} and {other} by {found[other][0]}, or with other "
                "parameters; say by --grader how both are graded"
            )
    recorded: tuple[str, Mapping[str, Any]] = found[first]
    return recorded


def _labels(files: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell the files apart."""
    parts = [file.absolute().with_suffix("").parts for file in files]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise InputError("a file was given twice; each is graded once")


def _lines(graded: GradedFile) -> str:
    rows = []
    for i, (problem, scores) in enumerate(zip(graded.saved.problems, graded.scores, strict=True)):
        for sample, score in enumerate(scores):
            row: dict[str, Any] = {"file": str(graded.saved.path), "id": problem.id, "sample": sample}
            row["score"] = score
            if graded.answers is not None:
                row["answer"] = graded.answers[i][sample]
            rows.append(f"{json.dumps(row, ensure_ascii=False)}\n")
    return "".join(rows)
