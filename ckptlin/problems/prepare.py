"""Data sets made ready for training and evaluation: in ckptlin's fields as JSONL, or as verl's parquet."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ckptlin.atomic import write_file
from ckptlin.errors import InputError, MissingExtraError, OutputExistsError, SelectionError
from ckptlin.problems.load import load_problems
from ckptlin.problems.problem import Problem
from ckptlin.problems.template import get_template

__all__ = ["DATA_SETS", "DataSet", "Format", "Prepared", "prepare"]

Format = Literal["jsonl", "verl"]


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by name.

    Attributes
    ----------
    name : str
    source : str
        For `load_problems`: its name on the hub, or ``sums``.
    splits : tuple of str
        The first is taken where none is asked for.
    template : str
        The prompt template that verl's format has written into its prompts.
    description : str
        One line for the user.
    read : callable
        Makes a row of the source, as `load_problems` reads it, a problem in our sense.
    """

    name: str
    source: str
    splits: tuple[str, ...]
    template: str
    description: str
    read: Callable[[Problem], Problem] = lambda problem: problem


@dataclass(frozen=True)
class Prepared:
    """What was written, and what was not.

    Attributes
    ----------
    path : Path
    source : str
    num_read, num_written : int
        Rows.
    num_duplicates : int
        Rows left out because their problem is there already, white space aside.
    num_conflicting : int
        Those of them whose answer is another; the first row's counts.
    num_unanswerable : int
        Rows left out because they have no answer.
    num_bytes : int
        Of the file.
    """

    path: Path
    source: str
    num_read: int
    num_written: int
    num_duplicates: int
    num_conflicting: int
    num_unanswerable: int
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**self.__dict__, "path": str(self.path)}


def prepare(
    name: str,
    out_dir: Path | str,
    *,
    data: Path | str | None = None,
    split: str | None = None,
    format: Format = "jsonl",
    template: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Prepared:
    """Write a data set's problems to ``out_dir/NAME.jsonl`` or ``NAME.parquet``.

    A data set of several splits has the split in the file's name: ``gsm8k-test.jsonl``.

    Parameters
    ----------
    name : str
        One of `DATA_SETS`.
    out_dir : Path or str
        Made if it is not there.
    data : Path or str, optional
        The same data as a file, with the same fields, instead of the hub.
    split : str, optional
    format : {"jsonl", "verl"}
    template : str, optional
        Another prompt template for verl's format, by name or as a text.
    limit : int, optional
        Only the first so many rows.
    seed : int
        Of the order of ``sums``.
    overwrite : bool

    Raises
    ------
    SelectionError
        If there is no such data set or split.
    OutputExistsError
        If the file is there, and is not to be replaced.
    InputError
        If the source cannot be loaded, or no row of it has an answer.
    MissingExtraError
        If the package that reads or writes it is not installed.
    DiskFullError
        If the disk is full; what was there is then as it was.
    """
    data_set = DATA_SETS.get(name)
    if data_set is None:
        raise SelectionError(f"there is no data set {name!r}; choose {', '.join(sorted(DATA_SETS))}")
    if format not in get_args(Format):
        raise SelectionError(f"there is no format {format!r}; choose {' or '.join(get_args(Format))}")
    if split is not None and split not in data_set.splits:
        raise SelectionError(f"{name} has no split {split!r}; it has {', '.join(data_set.splits)}")
    if template is not None and format != "verl":
        raise InputError("a template is written into verl's prompts alone; give it to training or evaluation")
    prompt = get_template(template or data_set.template, chat=True)
    chosen = split or data_set.splits[0]
    stem = name if len(data_set.splits) == 1 else f"{name}-{chosen}"
    path = Path(out_dir) / f"{stem}{'.parquet' if format == 'verl' else '.jsonl'}"
    # Before anything is downloaded.
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already; give another --out, or --overwrite to replace it")
    source = f"{data_set.source}:{chosen}" if data is None else str(data)
    rows = load_problems(source, limit=limit, seed=seed)
    kept, counts = _clean(map(data_set.read, rows))
    if not kept:
        raise InputError(
            f"none of the {len(rows):,} rows of {source} has an answer; are these the data of {name}?"
        )
    if format == "verl":
        content = _parquet([_verl_row(p, i, data_set, chosen, prompt.messages(p)) for i, p in enumerate(kept)])
    else:
        lines = (json.dumps(problem.to_dict(), ensure_ascii=False, default=str) for problem in kept)
        content = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return Prepared(path, source, len(rows), len(kept), *counts, len(content))


def _clean(problems: Iterable[Problem]) -> tuple[list[Problem], tuple[int, int, int]]:
    """Return the problems to keep, and how many are duplicates, which conflict, and how many have no answer."""
    kept: dict[str, Problem] = {}
    num_duplicates = num_conflicting = num_unanswerable = 0
    for problem in problems:
        text = " ".join(problem.problem.split())
        if problem.answer is None:
            num_unanswerable += 1
        elif text in kept:
            num_duplicates += 1
            num_conflicting += kept[text].answer != problem.answer
        else:
            kept[text] = problem
    return list(kept.values()), (num_duplicates, num_conflicting, num_unanswerable)


def _verl_row(
    problem: Problem, index: int, data_set: DataSet, split: str, messages: list[dict[str, str]]
) -> dict[str, Any]:
    """Return the fields that verl's ``RLHFDataset`` reads."""
    return {
        "data_source": "/".join(data_set.source.split("/")[:2]),
        "prompt": messages,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": split, "index": index, "id": problem.id},
    }


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError('writing parquet needs pyarrow; pip install "ckptlin[eval]"') from None
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _read_gsm8k(problem: Problem) -> Problem:
    """GSM8K's answer is a solution, and after ``####`` a number, with commas between its thousands."""
    solution, mark, number = (problem.answer or "").rpartition("####")
    answer = number.strip().replace(",", "")
    if not mark or not answer:
        return replace(problem, answer=None)
    return replace(problem, answer=answer, solution=solution.strip() or None)


DATA_SETS: Mapping[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "deepscaler",
            "agentica-org/DeepScaleR-Preview-Dataset",
            ("train",),
            "boxed",
            "what the paper trains on: 40 thousand problems of competitions",
        ),
        DataSet("aime24", "HuggingFaceH4/aime_2024", ("train",), "boxed", "AIME 2024, 30 problems"),
        DataSet("aime25", "math-ai/aime25", ("test",), "boxed", "AIME 2025, 30 problems"),
        DataSet("math500", "HuggingFaceH4/MATH-500", ("test",), "boxed", "500 problems of MATH"),
        DataSet(
            "gsm8k",
            "openai/gsm8k/main",
            ("test", "train"),
            "boxed",
            "word problems of grade school",
            _read_gsm8k,
        ),
        DataSet(
            "sums", "sums", ("train", "test"), "plain", "the demo's task, made on the spot: 100 thousand sums"
        ),
    )
}
