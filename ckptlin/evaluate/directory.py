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

from ckptlin.atomic import write_file
from ckptlin.directory_lock import directory_lock
from ckptlin.errors import InputError
from ckptlin.evaluate.models import EvaluatedModel
from ckptlin.evaluate.samples import SampleFile
from ckptlin.problems import Problem

__all__ = ["EvaluationDirectory", "hash_problems", "open_evaluation"]

_RECORD = "evaluation.json"
_RESULTS = "results.json"
_PROBLEMS = "problems.jsonl"
_PARTS = ("samples", "models", "scores", "scratch")
# What samples do not depend on, or is compared when a model's prompts are known.
_FREE = ("text", "grader")


class EvaluationDirectory:
    """An evaluation's directory, locked while it is open.

    Parameters
    ----------
    path : Path
    settings : mapping
        What samples depend on, as plain data.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = dict(settings)

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
        """Return problem and number of the samples that a model has."""
        if not self.samples_path(label).exists():
            return set()
        with self.open_samples(label) as samples:
            return samples.done

    def note_prompts(
        self, tokenizer: str, prompts: Sequence[Sequence[int]], problems: Sequence[Problem], *, label: str
    ) -> None:
        """Keep the prompts of the first model; those of every other must be the same.

        Raises
        ------
        InputError
            If a model has another tokenizer, or encodes the problems in another way.
        """
        digest = hashlib.blake2b(
            json.dumps([list(ids) for ids in prompts]).encode(), digest_size=16
        ).hexdigest()
        found = {"tokenizer": tokenizer, "prompts": digest}
        kept = self._settings.get("text")
        if kept is None:
            lines = (
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
            )
            write_file(self.path / _PROBLEMS, "".join(f"{line}\n" for line in lines).encode())
            self._settings["text"] = found
            self._write(_RECORD, self._settings)
            return
        for name, what in (
            ("tokenizer", "another tokenizer"),
            ("prompts", "another chat template or tokenizer"),
        ):
            if kept[name] != found[name]:
                raise InputError(
                    f"model {label} has {what} than the models evaluated before in {self.path}; evaluate it in "
                    "a directory of its own, and compare them by `ckptlin grade DIRECTORY DIRECTORY`"
                )

    def note_model(self, model: EvaluatedModel, fingerprint: Callable[[], str]) -> str:
        """Enter a model; return its fingerprint, which is only taken if the model may be another.

        Raises
        ------
        InputError
            If there are samples of another model under the same label.
        """
        known = self.model_record(model.label)
        identity = json.loads(json.dumps(dict(model.identity)))
        if known is not None and known["identity"] == identity:
            return str(known["fingerprint"])
        taken = fingerprint()
        if known is not None and known["fingerprint"] != taken:
            raise InputError(
                f"{self.path} has samples of another model called {model.label}, from {known['source']}; "
                "evaluate into another --out, or give --overwrite"
            )
        self._write(f"models/{model.label}.json", (known or {}) | model.to_dict() | {"fingerprint": taken})
        return taken

    def model_record(self, label: str) -> dict[str, Any] | None:
        """Return what was entered of a model; None if nothing was."""
        return _read(self.path / "models" / f"{label}.json")

    def note_engine(self, label: str, described: Mapping[str, Any]) -> None:
        """Enter what answers for a model."""
        record = self.model_record(label) or {}
        self._write(f"models/{label}.json", record | {"engine": dict(described)})

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
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; give a directory for the evaluation")
    given = json.loads(json.dumps(dict(settings)))
    known = _read(path / _RECORD)
    if (
        known is None
        and path.is_dir()
        and any(child.name not in (".lock", *_PARTS) for child in path.iterdir())
    ):
        raise InputError(f"{path} holds something else than an evaluation; give another --out")
    path.mkdir(parents=True, exist_ok=True)
    with directory_lock(path, "evaluating into"):
        known = _read(path / _RECORD)
        if overwrite and known is not None:
            # What makes it an evaluation goes last, so that a kill leaves what can be overwritten again.
            for name in _PARTS:
                shutil.rmtree(path / name, ignore_errors=True)
            for name in (_RESULTS, _PROBLEMS, _RECORD):
                (path / name).unlink(missing_ok=True)
            known = None
        if known is not None:
            _compare(path, known, given)
        for name in _PARTS[:-1]:
            (path / name).mkdir(exist_ok=True)
        record = given | ({"text": known["text"]} if known is not None and "text" in known else {})
        if record != known:
            write_file(path / _RECORD, json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
        try:
            yield EvaluationDirectory(path, record)
        finally:
            shutil.rmtree(path / "scratch", ignore_errors=True)


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
    if differing:
        name = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"{path} was begun with {name} {theirs.get(name)!r}, not {ours.get(name)!r}{more}; samples of both "
            "would not be comparable: give another --out, or --overwrite"
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
