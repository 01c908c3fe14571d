"""Data sets made ready for training and evaluation: in ckptlin's fields as JSONL, or as verl's parquet."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ckptlin.atomic import write_file
from ckptlin.errors import InputError, MissingExtraError, OutputExistsError, SelectionError
from ckptlin.problems.data_sets import DataSet, get_data_set
from ckptlin.problems.problem import Problem
from ckptlin.problems.template import get_template
from ckptlin.problems.window import Window, as_window

__all__ = ["Format", "Prepared", "prepare"]

Format = Literal["jsonl", "verl"]


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
        Rows left out because they have no answer, or no tests.
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
    window: str | Sequence[str] | Window | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Prepared:
    """Write a data set's problems to ``out_dir/NAME.jsonl`` or ``NAME.parquet``.

    A data set of several splits has the split in the file's name: ``gsm8k-test.jsonl``.

    Parameters
    ----------
    name : str
        One of `ckptlin.problems.data_sets.DATA_SETS`.
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
    window : str, two str or Window, optional
        Only rows of this time, ``FROM:TO``, both days included.
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
        If the source cannot be loaded, no row of it has an answer, or verl has no place for its tests.
    MissingExtraError
        If the package that reads or writes it is not installed.
    DiskFullError
        If the disk is full; what was there is then as it was.
    """
    data_set = get_data_set(name)
    if format not in get_args(Format):
        raise SelectionError(f"there is no format {format!r}; choose {' or '.join(get_args(Format))}")
    if template is not None and format != "verl":
        raise InputError("a template is written into verl's prompts alone; give it to training or evaluation")
    if format == "verl" and data_set.template == "code":
        raise InputError(f"{name} has tests and no answers, which verl's format has no place for; use jsonl")
    prompt = get_template(template or data_set.template, chat=True)
    source = data_set.source_of(data=data, split=split)
    time = as_window(window)
    chosen = split or data_set.splits[0]
    stem = name if len(data_set.splits) == 1 else f"{name}-{chosen}"
    path = Path(out_dir) / f"{stem}{'.parquet' if format == 'verl' else '.jsonl'}"
    # Before anything is downloaded.
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already; give another --out, or --overwrite to replace it")
    rows = data_set.load(data=data, split=split, limit=limit, window=time, seed=seed)
    kept, counts = _clean(rows, data_set)
    if not kept:
        raise InputError(
            f"none of the {len(rows):,} rows of {source} has an answer that can be graded; are these the data "
            f"of {name}?"
        )
    if format == "verl":
        content = _parquet([_verl_row(p, i, data_set, chosen, prompt.messages(p)) for i, p in enumerate(kept)])
    else:
        lines = (json.dumps(problem.to_dict(), ensure_ascii=False, default=str) for problem in kept)
        content = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return Prepared(path, source, len(rows), len(kept), *counts, len(content))


def _clean(problems: Sequence[Problem], data_set: DataSet) -> tuple[list[Problem], tuple[int, int, int]]:
    """Return the problems to keep, and how many are duplicates, which conflict, and how many have no answer."""
    kept: dict[str, Problem] = {}
    num_duplicates = num_conflicting = num_unanswerable = 0
    for problem in problems:
        text = " ".join(problem.problem.split())
        if not data_set.has_answer(problem):
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
