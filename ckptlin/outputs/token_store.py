"""The store of token log-probabilities: a zarr v3 group (format version 1) that grows by a step at a time.

::

    logprobs (step, token) float32     step (step) int64, in the order of computation
    entropy (token) float32            of the distributions at the step that `entropy_step` names
    token_ids, response, position (token) int32
    response_length, prompt (response) int32
    prompt_length (prompt), prompt_ids (prompt_token) int32
    names (names.byte), texts (texts.byte) uint8: JSON, [problem, sample] of each response; text by token id

How it lies on the disk, and how a step is committed: `ckptlin.outputs.step_store`.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ckptlin.dtypes import from_numpy
from ckptlin.errors import InputError, SelectionError
from ckptlin.outputs.responses import Responses
from ckptlin.outputs.step_store import COMPRESSOR, StepStore, StepStoreWriter, TokenStep, begun, write_array
from ckptlin.store.local_files import LocalFiles
from ckptlin.store.metadata import array_metadata, step_coordinate

__all__ = ["TokenStep", "TokenStore", "TokenStoreWriter", "open_token_writer"]

_CHUNK = 1 << 20
# Array to its dimension and data type; those that do not change once the store is made.
_FIXED = {
    "token_ids": ("token", "<i4"),
    "response": ("token", "<i4"),
    "position": ("token", "<i4"),
    "response_length": ("response", "<i4"),
    "prompt": ("response", "<i4"),
    "prompt_length": ("prompt", "<i4"),
    "prompt_ids": ("prompt_token", "<i4"),
    "names": ("names.byte", "u1"),
    "texts": ("texts.byte", "u1"),
}


class TokenStore(StepStore):
    """The log-probabilities of tokens, as committed.

    Parameters
    ----------
    path : path-like
        A local directory.

    Raises
    ------
    NotAStoreError, StoreVersionError
    InputError
        If it is a URL.
    """

    KEY = "ckptlin_tokens"
    FORMAT = 1
    CONTENT = "log-probabilities"
    COMMAND = "logprobs"
    ARRAYS = frozenset((*_FIXED, "logprobs"))

    def __repr__(self) -> str:
        return f"<TokenStore {self.path}: {len(self._steps)} steps, {self.num_tokens:,} tokens>"

    @property
    def num_tokens(self) -> int:
        """Of all responses."""
        return int(self.record["num_tokens"])

    @property
    def num_responses(self) -> int:
        """Whose tokens they are."""
        return int(self.record["num_responses"])

    @property
    def entropy_step(self) -> int | None:
        """The step that the entropy is of; None if none was computed."""
        found: int | None = self.record["entropy_step"]
        return found

    @property
    def token_steps(self) -> tuple[TokenStep, ...]:
        """What is known of each, in the order of their rows."""
        return self._steps

    def check(self, responses: Responses) -> None:
        """Refuse to go on with other responses; InputError."""
        if self.record["responses"] != responses.digest:
            raise InputError(f"{self.path} holds the log-probabilities of other responses; give another --out")

    def read(self, array: str) -> np.ndarray[Any, Any]:
        """Read an array whole that has one dimension: ``token_ids``, ``response``, ``entropy``, ..."""
        node = self._node(array)
        dtype, [size], [chunk] = np.dtype(node["data_type"]), node["shape"], _chunk_shape(node)
        out = np.empty(size, dtype)
        for index, lo in enumerate(range(0, size, chunk)):
            piece = self._chunk(array, (index,), np.empty(chunk, dtype))
            out[lo : lo + chunk] = piece[: size - lo]
        return out

    def read_json(self, array: str) -> Any:
        """Return the data in ``names`` or ``texts``."""
        return json.loads(self.read(array).tobytes())

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Divide the tokens as they are stored: the first token of each part, and the one after its last."""
        for lo in range(0, self.num_tokens, _CHUNK):
            yield lo, min(lo + _CHUNK, self.num_tokens)

    def read_log_probs(
        self, steps: Sequence[int], start: int = 0, stop: int | None = None
    ) -> np.ndarray[Any, Any]:
        """Read the log-probabilities of some tokens, ``(len(steps), stop - start) float32``.

        Raises
        ------
        SelectionError
            If a step is not in the store.
        CorruptChunkError
            If a chunk is missing or damaged.
        """
        stop = self.num_tokens if stop is None else stop
        size = _chunk_size(self.num_tokens)
        return self._read_rows(
            np.empty((len(steps), stop - start), np.float32),
            steps,
            start,
            size=size,
            chunk=lambda row, index: self._chunk("logprobs", (row, index), np.empty((1, size), np.float32))[0],
        )

    @classmethod
    def nodes(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the metadata of every array of a store with this record, by name."""
        real = from_numpy("<f4")
        num_steps, num_tokens = len(record["steps"]), record["num_tokens"]
        size = _chunk_size(num_tokens)
        codecs = COMPRESSOR.codecs(real, delta=False)
        nodes = {
            "logprobs": array_metadata(
                (num_steps, num_tokens),
                (1, size),
                real,
                codecs,
                ["step", "token"],
                {"long_name": "log-probability", "units": "nat"},
            ),
            "step": step_coordinate(num_steps),
        }
        if record["entropy_step"] is not None:
            attributes = {"long_name": f"entropy at step {record['entropy_step']}", "units": "nat"}
            nodes["entropy"] = array_metadata((num_tokens,), (size,), real, codecs, ["token"], attributes)
        for name, (dimension, dtype_name) in _FIXED.items():
            dtype, length = from_numpy(dtype_name), record["sizes"][name]
            nodes[name] = array_metadata(
                (length,), (_chunk_size(length),), dtype, COMPRESSOR.codecs(dtype, delta=False), [dimension]
            )
        return nodes

    def _node(self, array: str) -> dict[str, Any]:
        try:
            node: dict[str, Any] = self._root["consolidated_metadata"]["metadata"][array]
        except KeyError:
            raise SelectionError(f"{self.path} has no array {array}") from None
        return node


class TokenStoreWriter(StepStoreWriter[TokenStore]):
    """Writes a store, while it holds its lock; see `open_token_writer`.

    Attributes
    ----------
    store : TokenStore
        As committed so far.
    """

    KIND = TokenStore

    def append(
        self, step: TokenStep, log_probs: np.ndarray[Any, Any], entropy: np.ndarray[Any, Any] | None = None
    ) -> None:
        """Commit a step.

        Parameters
        ----------
        step : TokenStep
        log_probs : (num_tokens,) float32
        entropy : (num_tokens,) float32, optional
            Kept if the store has none yet.

        Raises
        ------
        StepConflictError
            If the step is there.
        DiskFullError
            If there is no room; the store is then as it was.
        """
        row, size = self._new_row(step), _chunk_size(self.store.num_tokens)
        changes = {}
        write_array(self._files, "logprobs", log_probs, size, row=row)
        if entropy is not None and self.store.entropy_step is None:
            changes["entropy_step"] = step.step
            write_array(self._files, "entropy", entropy, size)
        self._commit(step, **changes)


@contextmanager
def open_token_writer(
    path: str | os.PathLike[str], responses: Responses, *, tokenizer: str | None, texts: Mapping[int, str]
) -> Iterator[TokenStoreWriter]:
    """Make a store for some responses, or go on with the one that is there; one process at a time.

    Parameters
    ----------
    path : path-like
        Local directory.
    responses : Responses
    tokenizer : str or None
        Fingerprint of the tokenizer, for the record.
    texts : mapping of int to str
        Text of each token that occurs.

    Raises
    ------
    InputError
        If it is a URL, holds something else, or is a store of other responses.
    StoreLockedError
        If another process writes to it.
    """
    with begun(path, TokenStore, partial(_begin, responses, tokenizer, texts)) as root:
        writer = TokenStoreWriter(root)
        writer.store.check(responses)
        if writer.store.record["tokenizer"] != tokenizer:
            raise InputError(f"{root} was begun with another tokenizer; give another --out")
        yield writer


def _begin(
    responses: Responses, tokenizer: str | None, texts: Mapping[int, str], files: LocalFiles
) -> dict[str, Any]:
    """Write the arrays that do not change; return the record of a store of them."""
    probes = responses.probes
    lengths = np.array([len(probe.token_ids) for probe in probes], np.int32)
    places: dict[int, int] = {}
    prompts: list[np.ndarray[Any, Any]] = []
    for probe in probes:
        if id(probe.prompt_ids) not in places:
            places[id(probe.prompt_ids)] = len(prompts)
            prompts.append(probe.prompt_ids)
    starts = np.cumsum(lengths) - lengths
    arrays = {
        "token_ids": np.concatenate([probe.token_ids for probe in probes]),
        "response": np.repeat(np.arange(len(probes), dtype=np.int32), lengths),
        "position": (np.arange(lengths.sum()) - np.repeat(starts, lengths)).astype(np.int32),
        "response_length": lengths,
        "prompt": np.array([places[id(probe.prompt_ids)] for probe in probes], np.int32),
        "prompt_length": np.array([len(ids) for ids in prompts], np.int32),
        "prompt_ids": np.concatenate(prompts),
        "names": _json_bytes([list(name) for name in responses.names]),
        "texts": _json_bytes({str(token): text for token, text in texts.items()}),
    }
    for name, values in arrays.items():
        write_array(files, name, values.astype(_FIXED[name][1]), _chunk_size(values.size))
    return {
        "responses": responses.digest,
        "num_responses": len(probes),
        "num_tokens": int(lengths.sum()),
        "tokenizer": tokenizer,
        "tokenized_here": responses.tokenized_here,
        "sizes": {name: int(values.size) for name, values in arrays.items()},
        "entropy_step": None,
    }


def _chunk_size(length: int) -> int:
    return max(1, min(length, _CHUNK))


def _chunk_shape(node: Mapping[str, Any]) -> list[int]:
    shape: list[int] = node["chunk_grid"]["configuration"]["chunk_shape"]
    return shape


def _json_bytes(data: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(data).encode(), np.uint8)
