"""Problems from a file, from the hub, or made on the spot.

What the fields of a row mean is said in `ckptlin.problems.fields`.  Rows are read one by one as far as
``limit`` asks; what is malformed is named with its place, and nothing is left out.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError, MissingExtraError, SelectionError
from ckptlin.problems.fields import Columns, MalformedRow, Need, problem_of_row, require
from ckptlin.problems.problem import Problem
from ckptlin.problems.sums import draw_sums

__all__ = ["SUFFIXES", "load_problems", "read_rows"]

SUFFIXES = (".jsonl", ".json", ".parquet")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
_SHOWN_LINES = 10


def load_problems(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    needs: Need | None = None,
    files: Sequence[str] = (),
    keep: Callable[[Problem], bool] | None = None,
    seed: int = 0,
) -> tuple[Problem, ...]:
    """Load problems, in the order of their source.

    Parameters
    ----------
    source : str or Path
        A file (``.jsonl``, ``.json`` with a list, ``.parquet``); a data set of the hub, ``org/name`` or
        ``org/name/configuration``, or a directory that ``datasets.load_dataset`` reads; or ``sums``, the demo's
        task.  The last two may end in ``:split``.
    split : str, optional
        Of a data set or of ``sums``.  Not needed for a data set that has one only; of ``sums`` it is ``train``
        unless ``test`` is asked for.
    columns : mapping of str to str, optional
        Names of the source's columns by ours: ``{"problem": "question_content"}``.
    limit : int, optional
        Only the first so many, of those that are kept.
    needs : {"answer", "solution"}, optional
        What every problem must have.
    files : sequence of str
        Names of the JSONL files of a data set that are read one after the other, as they are; for one that
        `datasets` cannot load.
    keep : callable, optional
        Only problems of which this is true; others are dropped as they are read, and take no memory.
    seed : int
        Of the order of ``sums``; which sums belong to a split does not depend on it.

    Returns
    -------
    tuple of Problem

    Raises
    ------
    InputError
        If the source is not there, cannot be reached, holds no problem, has a malformed row, has two of one id,
        or lacks what is needed.
    SelectionError
        If the source has no such split or column.
    MissingExtraError
        If the package that reads the source is not installed.

    Examples
    --------
    >>> [problem.answer for problem in load_problems("sums:test", limit=2)]
    ['9;17;20;26', '13;20;20;20']
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} leaves no problem; give at least 1")
    mapping = Columns(dict(columns or {}))
    base, own_split = _divide(str(source))
    path = Path(base)
    if own_split and split and own_split != split:
        raise InputError(f"{source} names the split {own_split}, but split {split} was asked for too; give one")
    split = own_split or split
    if base == "sums":
        if columns:
            raise InputError("sums have no columns to be named; leave columns out")
        # Their number is known beforehand, and only so many are made.
        problems: tuple[Problem, ...] = draw_sums(limit, split=split or "train", seed=seed)
        if keep is not None:
            problems = tuple(filter(keep, problems))
        require(problems, needs, where="sums")
        return problems
    if path.suffix in SUFFIXES:
        if split is not None:
            raise InputError(f"{base} is a file and has no splits; leave out {split!r}")
        if not path.is_file():
            raise InputError(f"there is no file {base}; give another, or the name of a data set")
        rows = read_rows(path)
    elif path.is_file():
        raise InputError(
            f"{base} ends in {path.suffix or 'nothing'}; problems are read from {', '.join(SUFFIXES)}"
        )
    elif path.is_dir() or _HUB_NAME.fullmatch(base):
        rows = _hub_files(base, files) if files else _hub(base, split)
    else:
        raise InputError(
            f"{base} is neither a file ({', '.join(SUFFIXES)}), nor a data set of the hub (org/name), nor sums"
        )
    return _collect(rows, mapping, base, limit, needs, keep)


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Read a file row by row, each with its place: ``.jsonl``, ``.json`` with a list, ``.parquet``.

    What is no JSON comes as a `MalformedRow`, which is not raised here, so that all places can be told.

    Raises
    ------
    InputError
        If the file as a whole cannot be read, or ends otherwise.
    MissingExtraError
        If the package that reads it is not installed.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; rows are read from {', '.join(readers)}")
    return readers[path.suffix](path)


def _divide(source: str) -> tuple[str, str | None]:
    """Take ``:split`` off the end; a path may hold colons of its own."""
    base, colon, split = source.rpartition(":")
    if not colon or Path(source).exists() or not re.fullmatch(r"[\w.+-]+", split):
        return source, None
    return base, split


def _collect(
    rows: Iterable[tuple[str, Any]],
    columns: Columns,
    where: str,
    limit: int | None,
    needs: Need | None,
    keep: Callable[[Problem], bool] | None,
) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    places: dict[str, str] = {}
    malformed: list[tuple[str, str]] = []
    there: dict[str, None] = {}
    num_dropped = 0
    for number, (place, row) in enumerate(rows):
        if limit is not None and len(problems) + len(malformed) == limit:
            break
        try:
            if isinstance(row, MalformedRow):
                raise row
            problem = problem_of_row(row, columns, number=number)
        except MalformedRow as error:
            malformed.append((place, str(error)))
            continue
        there |= dict.fromkeys(row)
        if problem.id in places:
            raise InputError(
                f"{where}, {place} has the id {problem.id!r}, which {places[problem.id]} has already; ids tell "
                "problems apart, so drop one, or the field"
            )
        places[problem.id] = place
        if keep is None or keep(problem):
            problems.append(problem)
        else:
            num_dropped += 1
    for ours, theirs in columns.named.items():
        if there and theirs not in there:
            raise SelectionError(
                f"{where} has no column {theirs!r} to take as {ours}; it has {', '.join(map(str, there))}"
            )
    if malformed:
        place, reason = malformed[0]
        others = [place for place, _ in malformed[1:]]
        more = f", and {len(others) - _SHOWN_LINES:,} more" if len(others) > _SHOWN_LINES else ""
        also = f"; so are {', '.join(others[:_SHOWN_LINES])}{more}" if others else ""
        raise InputError(f"{where}, {place} {reason} (malformed{also}); correct the data")
    if not problems:
        none = f"; {num_dropped:,} others are left out" if num_dropped else ""
        raise InputError(f"{where} holds no problem{' that was asked for' if none else ''}{none}")
    require(problems, needs, where=where)
    return tuple(problems)


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return MalformedRow(f"is not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return MalformedRow(f"is not JSON ({error.msg} at column {error.colno})")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno} is not JSON ({error.msg} at column {error.colno}); if it has "
            "an object a line, name it .jsonl"
        ) from None
    if not isinstance(content, list):
        raise InputError(f"{path} holds a JSON {type(content).__name__}; expected a list of objects")
    yield from ((f"entry {number}", row) for number, row in enumerate(content, start=1))


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(f'reading {path} needs pyarrow; pip install "ckptlin[eval]"') from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is no readable parquet file: {error}") from error


def _hub_files(name: str, files: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Read files of a data set of the hub, or of a directory that holds its repository."""
    for file in files:
        path = Path(name) / file
        if not Path(name).is_dir():
            path = _downloaded(name, file)
        elif not path.is_file():
            raise InputError(f"the directory {name} has no {file}; it takes {', '.join(files)}")
        yield from ((f"{file}, {place}", row) for place, row in _jsonl(path))


def _downloaded(name: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtraError(f'reading {name} needs huggingface_hub; pip install "ckptlin[eval]"') from None
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"the data set {name} could not be loaded: {reason}; check its name and the connection, or give the "
        "same data as a file"
    )


def _hub(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import DatasetDict, load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise MissingExtraError(f'reading {name} needs datasets; pip install "ckptlin[eval]"') from None
    repository, configuration = name, None
    if not Path(name).is_dir() and name.count("/") == 2:
        repository, _, configuration = name.rpartition("/")
    try:
        loaded = load_dataset(repository, configuration)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise _unreachable(name, error) from error
    parts = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    if split is None and len(parts) > 1:
        raise InputError(
            f"the data set {name} has the splits {', '.join(parts)}; choose one, as in {name}:{min(parts)}"
        )
    chosen = split or next(iter(parts))
    if chosen not in parts:
        raise SelectionError(f"the data set {name} has no split {chosen!r}; it has {', '.join(parts)}")
    for number, row in enumerate(parts[chosen], start=1):
        yield f"row {number}", row
