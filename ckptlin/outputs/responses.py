"""Responses on disk: prompts and answers as token ids, a line of JSON each.

Two layouts are read.  What `ckptlin responses` writes has ids, which are taken as they are::

    {"id", "sample", "prompt_ids", "token_ids", "text", "finished", "seed"}

What others write has texts, ``prompt`` or ``messages``, and ``response``; they are tokenised once, by the
model's own tokenizer: messages through its chat template, the response by itself and without special tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.errors import InputError
from ckptlin.evaluate.json_lines import LineFile, read_lines, typed
from ckptlin.outputs.scorers import Probe

__all__ = ["Response", "ResponseFile", "Responses", "read_responses"]

_FIELDS = ("id", "sample", "prompt_ids", "token_ids", "text", "finished", "seed")
_EXPECTED = "prompt_ids and token_ids, or prompt or messages with response"
_MAX_ID = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Response:
    """What a model answered to a prompt.

    Attributes
    ----------
    problem_id : str
    sample : int
        Its number among the answers to this problem, from 0.
    prompt_ids, token_ids : tuple of int
        What the model read and wrote, the token that ended it included.
    text : str
        The answer without special tokens.
    finished : bool
        Whether its end was written, and not the limit of its length reached.
    seed : int
        That it was drawn with.
    """

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as a line of a file has it."""
        return {
            "id": self.problem_id,
            "sample": self.sample,
            "prompt_ids": list(self.prompt_ids),
            "token_ids": list(self.token_ids),
            "text": self.text,
            "finished": self.finished,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Responses:
    """Responses that can be scored, in the order of their file.

    Attributes
    ----------
    probes : tuple of Probe
        Equal prompts share their ids.
    names : tuple of (str, int)
        Problem and number of each.
    tokenized_here : bool
        Whether they came as texts.
    """

    probes: tuple[Probe, ...] = field(repr=False)
    names: tuple[tuple[str, int], ...] = field(repr=False)
    tokenized_here: bool

    @property
    def num_tokens(self) -> int:
        """Of all responses, prompts excluded."""
        return sum(len(probe.token_ids) for probe in self.probes)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return max(probe.num_tokens for probe in self.probes)

    @property
    def digest(self) -> str:
        """Hash of all names and ids."""
        hashed = hashlib.blake2b(digest_size=16)
        for probe, name in zip(self.probes, self.names, strict=True):
            lengths = [len(probe.prompt_ids), len(probe.token_ids)]
            hashed.update(json.dumps([*name, *lengths]).encode())
            hashed.update(probe.prompt_ids.astype("<i4").tobytes())
            hashed.update(probe.token_ids.astype("<i4").tobytes())
        return hashed.hexdigest()


class ResponseFile:
    """Responses in a file that grows; a context manager.

    Parameters
    ----------
    path : Path
        Made if it is not there; a last line that a kill cut off is taken away.

    Attributes
    ----------
    done : set of (str, int)
        Problem and number of every response in the file.
    num_tokens : int
        Of all of them.

    Raises
    ------
    InputError
        If a line is no response of this layout, or two are the same.
    """

    def __init__(self, path: Path) -> None:
        self.done: set[tuple[str, int]] = set()
        self.num_tokens = 0
        self._file = LineFile(path, "responses")
        try:
            expected = f"an object with {', '.join(_FIELDS)}"
            for response in read_lines(path, _parse, what="response", expected=expected):
                self._note(response)
        except BaseException:
            self._file.close()
            raise

    def append(self, responses: Sequence[Response]) -> None:
        """Write responses; they are on the disk when this returns; DiskFullError if there is no room."""
        self._file.append([response.to_dict() for response in responses])
        for response in responses:
            self._note(response)

    def _note(self, response: Response) -> None:
        key = (response.problem_id, response.sample)
        if key in self.done:
            raise InputError(
                f"{self._file.path} has response {response.sample} to problem {response.problem_id} "
                "twice; move it "
                "away"
            )
        self.done.add(key)
        self.num_tokens += len(response.token_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._file.close()


def read_responses(path: Path, *, tokenizer: Any = None, limit: int | None = None) -> Responses:
    """Read responses to score.

    Parameters
    ----------
    path : Path
        A file of JSON lines in one of the two layouts.
    tokenizer : Any, optional
        Of transformers, for rows of text.
    limit : int, optional
        Only the first so many.

    Raises
    ------
    InputError
        If there is no such file, it is empty, a row is malformed, rows of both layouts are mixed, or there
        are texts and no tokenizer or chat template for them.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; make one with `ckptlin responses`")
    prompts: dict[bytes, np.ndarray[Any, Any]] = {}
    probes: list[Probe] = []
    names: dict[tuple[str, int], None] = {}
    kinds: set[bool] = set()
    counts: dict[str, int] = {}

    def parse(row: Any) -> tuple[str, int, np.ndarray[Any, Any], np.ndarray[Any, Any], bool]:
        typed(row, dict)
        has_ids = "token_ids" in row or "prompt_ids" in row
        if has_ids:
            prompt, answer = typed(row["prompt_ids"], list), typed(row["token_ids"], list)
        else:
            prompt, answer = _tokenize(row, tokenizer)
        for what, ids in (("prompt", prompt), ("response", answer)):
            if not ids:
                raise ValueError(f"its {what} has no tokens")
            for token in ids:
                if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token <= _MAX_ID:
                    raise ValueError(f"{token!r:.40} is no token id")
        identity = row.get("id", str(len(probes)))
        problem = str(typed(identity, str | int))  # type: ignore[arg-type]
        sample = typed(row["sample"], int) if "sample" in row else counts.get(problem, 0)
        counts[problem] = counts.get(problem, 0) + 1
        return problem, sample, np.array(prompt, np.int32), np.array(answer, np.int32), has_ids

    rows: Iterator[Any] = read_lines(path, parse, what="response", expected=_EXPECTED)
    for number, (problem, sample, prompt, answer, has_ids) in enumerate(rows, start=1):
        if (problem, sample) in names:
            raise InputError(
                f"line {number} of {path} is response {sample} to problem {problem} again; drop one"
            )
        names[problem, sample] = None
        kinds.add(has_ids)
        if len(kinds) > 1:
            raise InputError(
                f"line {number} of {path} has {'ids' if has_ids else 'texts'}, unlike those before; give "
                "files of one "
                "layout"
            )
        probes.append(Probe(prompts.setdefault(prompt.tobytes(), prompt), answer))
        if len(probes) == limit:
            break
    if not probes:
        raise InputError(f"{path} holds no response")
    return Responses(tuple(probes), tuple(names), tokenized_here=kinds == {False})


def _parse(row: Any) -> Response:
    return Response(
        problem_id=typed(row["id"], str),
        sample=typed(row["sample"], int),
        prompt_ids=tuple(typed(row["prompt_ids"], list)),
        token_ids=tuple(typed(row["token_ids"], list)),
        text=typed(row["text"], str),
        finished=typed(row["finished"], bool),
        seed=typed(row["seed"], int),
    )


def _tokenize(row: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    answer = typed(row["response"], str)
    if ("messages" in row) == ("prompt" in row):
        raise ValueError("it must have either prompt or messages")
    if tokenizer is None:
        raise ValueError("it holds texts, and the model has no tokenizer")
    if "messages" in row:
        messages = typed(row["messages"], list)
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("it holds messages, and the model's tokenizer has no chat template")
        try:
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # of templates, which raise whatever they like
            raise ValueError(f"the chat template refuses its messages: {error}") from error
    else:
        prompt = tokenizer(typed(row["prompt"], str))["input_ids"]
    return prompt, tokenizer(answer, add_special_tokens=False)["input_ids"]
