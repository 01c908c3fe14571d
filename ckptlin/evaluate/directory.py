"""The directory of an evaluation: what lies where, and what must not change from one start to the next.

::

    OUT/evaluation.json       task, sampling, engine and tokenizer: what samples depend on
    OUT/problems.jsonl        a line a problem: id, problem, answer, prompt as token ids
    OUT/samples/LABEL.jsonl   a line a sample, see `ckptlin.evaluate.samples`
    OUT/models/LABEL.json     where the model came from, and its fingerprint
    OUT/scores/LABEL.json     what the grader found
    OUT/results.json          figures of all models

Samples and models go in as they come; all other files are written beside their place and renamed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptlin.atomic import partial_name, write_file
from ckptlin.directory_lock import directory_lock
from ckptlin.errors import InputError
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.evaluate.samples import SampleFile, keys_of
from ckptlin.problems import Problem

__all__ = ["EvaluationDirectory", "check_evaluation", "hash_problems", "open_evaluation"]

_RECORD = "evaluation.json"
_RESULTS = "results.json"
_PROBLEMS = "problems.jsonl"
_PARTS = ("samples", "models", "scores")
_ASIDE = "replaced"
# What samples do not depend on, or is compared when a model is there.
_FREE = ("tokenizer", "grader")


class EvaluationDirectory:
    """An evaluation's directory, locked while it is open.

    Parameters
    ----------
    path : Path
    record : mapping
        Content of ``evaluation.json``.
    replaced : _Replaced, optional
        What lies aside until a model answers.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, record: Mapping[str, Any], replaced: "_Replaced | None" = None) -> None:
        self.path = path
        self._record = dict(record)
        self._replaced = replaced or _Replaced(path)

    @property
    def scratch(self) -> Path:
        """A directory for models that are written only to be evaluated."""
        directory = self.path / "scratch"
        directory.mkdir(exist_ok=True)
        return directory

    @property
    def results_path(self) -> Path:
        """``results.json``."""
        return self.path / _RESULTS

    def samples_path(self, label: str) -> Path:
        """Where the samples of a model lie, or will."""
        return self.path / "samples" / f"{label}.jsonl"

    def open_samples(self, label: str) -> SampleFile:
        """Open the samples of a model, to go on with them."""
        return SampleFile(self.samples_path(label))

    def done(self, label: str) -> set[tuple[str, int]]:
        """Return problem and number of the samples that a model has; nothing is changed."""
        return keys_of(self.samples_path(label))

    def prompts(
        self,
        tokenizer: str,
        problems: Sequence[Problem],
        encode: Callable[[], list[tuple[int, ...]]],
        *,
        label: str,
    ) -> list[tuple[int, ...]]:
        """Return the prompts that all models answer: those that are kept, or else the first model's.

        A chat template may write the date, so that another day's prompts would not be the same.

        Parameters
        ----------
        tokenizer : str
            What the prompts depend on, see `ckptlin.evaluate.prompts.ModelText.fingerprint`.
        problems : sequence of Problem
        encode : callable
            Makes the prompts, if there are none yet.
        label : str
            Of the model, for the error.

        Raises
        ------
        InputError
            If a model has another tokenizer or chat template than those before it.
        """
        kept = self._record.get("tokenizer")
        path = self.path / _PROBLEMS
        if kept is not None and kept != tokenizer:
            raise InputError(
                f"model {label} has another tokenizer or chat template than the models evaluated before in "
                f"{self.path}; evaluate it in a directory of its own, and compare them by `ckptlin grade "
                "DIRECTORY DIRECTORY`"
            )
        if kept is not None:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            return [tuple(row["prompt_ids"]) for row in rows]
        prompts = encode()
        lines = [
            json.dumps(
                {
                    "id": problem.id,
                    "problem": problem.problem,
                    "answer": problem.answer,
                    "prompt_ids": list(ids),
                },
                ensure_ascii=False,
            )
            for problem, ids in zip(problems, prompts, strict=True)
        ]
        write_file(path, "".join(f"{line}\n" for line in lines).encode())
        self._record["tokenizer"] = tokenizer
        self._write(_RECORD, self._record)
        return prompts

    def note_model(self, model: EvaluatedModel, fingerprint: Callable[[], str]) -> str:
        """Enter a model; return its fingerprint, which is only taken if the model may be another.

        Raises
        ------
        InputError
            If there are samples of another model under the same label.
        """
        known = self.model_record(model.label)
        identity = None if model.identity is None else json.loads(json.dumps(dict(model.identity)))
        if known is not None and identity is not None and known["identity"] == identity:
            return str(known["fingerprint"])
        taken = fingerprint()
        if known is not None and known["fingerprint"] != taken:
            raise InputError(
                f"{self.path} has samples of another model called {model.label} ({known['source']}); evaluate "
                "into another --out, or give --overwrite"
            )
        self._write(f"models/{model.label}.json", (known or {}) | model.to_dict() | {"fingerprint": taken})
        return taken

    def may_have_changed(self, model: EvaluatedModel) -> bool:
        """Tell whether there is a model of this label that cannot be seen to be the same at a glance."""
        known = self.model_record(model.label)
        if known is None:
            return False
        return model.identity is None or known["identity"] != json.loads(json.dumps(dict(model.identity)))

    def model_record(self, label: str) -> dict[str, Any] | None:
        """Return what was entered of a model; None if nothing was."""
        return _read(self.path / "models" / f"{label}.json")

    def note_engine(self, label: str, described: Mapping[str, Any], *, stop_ids: Sequence[int]) -> None:
        """Enter what answers for a model, and which tokens end an answer; what was there is now given up.

        Raises
        ------
        InputError
            If answers that are there were ended by other tokens.
        """
        record = self.model_record(label) or {}
        ends = record.get("stop_ids", list(stop_ids))
        if ends != list(stop_ids):
            raise InputError(
                f"the samples of {label} in {self.path} were ended by the tokens {ends}, and its generation "
                f"configuration now names {list(stop_ids)}; evaluate into another --out, or give --overwrite"
            )
        self._write(f"models/{label}.json", record | {"engine": dict(described), "stop_ids": ends})
        self._replaced.give_up()

    def note_generation(self, label: str, *, num_tokens: int, elapsed_s: float) -> None:
        """Add what a start of the command has generated for a model."""
        record = self.model_record(label) or {}
        before = record.get("generated", {"tokens": 0, "seconds": 0.0})
        generated = {"tokens": before["tokens"] + num_tokens, "seconds": before["seconds"] + elapsed_s}
        self._write(f"models/{label}.json", record | {"generated": generated})

    def scores(self, label: str) -> dict[str, Any] | None:
        """Return what the grader found; None if nothing was kept."""
        return _read(self.path / "scores" / f"{label}.json")

    def keep_scores(self, label: str, scores: Mapping[str, Any]) -> None:
        """Keep what the grader found."""
        self._write(f"scores/{label}.json", scores)

    def results(self) -> dict[str, Any] | None:
        """Return ``results.json``; None before the first."""
        return _read(self.results_path)

    def keep_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        self._write(_RESULTS, results)

    def _write(self, name: str, data: Mapping[str, Any]) -> None:
        write_file(self.path / name, json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n")


@contextmanager
def open_evaluation(
    path: Path, settings: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[EvaluationDirectory]:
    """Begin an evaluation in a directory, or go on with the one that is there.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    settings : mapping
        What samples depend on, as plain data.
    overwrite : bool
        Remove what is there of an evaluation.

    Raises
    ------
    InputError
        If what is there depends on other settings, is no evaluation, or another process works in it.
    """
    given = check_evaluation(path, settings, overwrite=overwrite)
    path.mkdir(parents=True, exist_ok=True)
    with directory_lock(path, "evaluating into"):
        given = check_evaluation(path, settings, overwrite=overwrite)
        replaced = _Replaced(path)
        replaced.restore()  # of a process that was killed
        if overwrite:
            replaced.put_aside()
        try:
            known = _read(path / _RECORD)
            for name in _PARTS:
                (path / name).mkdir(exist_ok=True)
            record = given | ({"tokenizer": known["tokenizer"]} if known and "tokenizer" in known else {})
            if record != known:
                write_file(path / _RECORD, json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
            yield EvaluationDirectory(path, record, replaced)
        finally:
            replaced.restore()
            shutil.rmtree(path / "scratch", ignore_errors=True)


def check_evaluation(path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
    """Raise what `open_evaluation` would refuse, and change nothing; return the settings as JSON has them.

    Raises
    ------
    InputError
        If what is there depends on other settings, or is no evaluation.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give a directory for the evaluation")
    given: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    known = _read(path / _RECORD)
    if known is not None and not overwrite:
        _compare(path, known, given)
    ours = {".lock", _ASIDE, "scratch", *_PARTS}
    if known is None and path.is_dir() and any(child.name not in ours for child in path.iterdir()):
        raise InputError(f"{path} holds something else than an evaluation; give another --out")
    return given


class _Replaced:
    """What an evaluation that is begun anew has put aside, until the new one has a model that answers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path / _ASIDE

    def put_aside(self) -> None:
        """Move all that belongs to the evaluation into a directory."""
        self._aside.mkdir()
        # What makes it an evaluation goes first and comes back last: a kill in between is seen.
        for name in (_RECORD, _RESULTS, _PROBLEMS, *_PARTS):
            if (self._path / name).exists():
                (self._path / name).rename(self._aside / name)

    def give_up(self) -> None:
        """Remove what was put aside."""
        if self._aside.is_dir():
            gone = partial_name(self._aside)
            self._aside.rename(gone)  # at one stroke, so that a kill does not bring half of it back
            shutil.rmtree(gone)

    def restore(self) -> None:
        """Bring back what was put aside, in the place of what was begun since."""
        for gone in self._path.glob(f".{_ASIDE}.partial-*"):
            shutil.rmtree(gone)
        if not self._aside.is_dir():
            return
        for name in (*_PARTS, _PROBLEMS, _RESULTS, _RECORD):
            if (self._aside / name).exists():
                if (self._path / name).is_dir():
                    shutil.rmtree(self._path / name)
                (self._aside / name).rename(self._path / name)
        self._aside.rmdir()


def hash_problems(problems: Sequence[Problem]) -> str:
    """Hash ids, texts and answers of problems."""
    rows = [(problem.id, problem.problem, problem.answer) for problem in problems]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _compare(path: Path, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse settings that are not those of the samples that are there."""
    ours, theirs = (
        _flat({name: value for name, value in data.items() if name not in _FREE}) for data in (given, known)
    )
    differing = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if not differing:
        return
    name = differing[0]
    if name == "problems.hash":
        difference = "with other problems"
    else:
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        difference = f"with {name} {theirs.get(name)!r}, not {ours.get(name)!r}{more}"
    raise InputError(
        f"{path} was begun {difference}; samples of both would not be comparable: give another --out, or "
        "--overwrite"
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); move it away") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no object; move it away")
    return data
