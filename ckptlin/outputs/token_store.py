"""The store of token log-probabilities: a zarr v3 group (format version 1) that grows by a step at a time.

::

    logprobs (step, token) float32     step (step) int64, in the order of computation
    entropy (token) float32            of the distributions at the step that `entropy_step` names
    token_ids, response, position (token) int32
    response_length, prompt (response) int32
    prompt_length (prompt), prompt_ids (prompt_token) int32
    names (names.byte), texts (texts.byte) uint8: JSON, [problem, sample] of each response; text by token id

The root's ``zarr.json``, written last and in one rename, commits a step: it holds what is known of each
step, and the consolidated metadata of every array, so that a reader who opens consolidated (zarr's and
xarray's default) sees whole steps alone.  Chunks and metadata of single arrays may run ahead of it after a
kill; the next writer writes them again.  Codecs are zarr's own (blosc, crc32c).  It lies in a local directory.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.atomic import is_disk_full
from ckptlin.dtypes import from_numpy
from ckptlin.errors import (
    CorruptChunkError,
    DiskFullError,
    InputError,
    NotAStoreError,
    SelectionError,
    StepConflictError,
    StoreVersionError,
)
from ckptlin.outputs.responses import Responses
from ckptlin.store.chunk_codec import BloscCompressor, decode_plain, encode_plain
from ckptlin.store.local_files import PARTIAL_DIR, LocalFiles
from ckptlin.store.lock import LOCK_FILE, writer_lock
from ckptlin.store.metadata import ROOT_KEY, array_metadata, dump, group_metadata, step_coordinate
from ckptlin.store.store import chunk_key, describe_steps
from ckptlin.urls import is_url

__all__ = [
    "TokenStep",
    "TokenStore",
    "TokenStoreWriter",
    "explaining_a_full_disk",
    "local_path",
    "open_token_writer",
]

FORMAT = 1
_KEY = "ckptlin_tokens"
_CHUNK = 1 << 20
_COMPRESSOR = BloscCompressor("zstd", 3)
_STEP_COMPRESSOR = BloscCompressor("zstd", 1, "noshuffle")
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


@dataclass(frozen=True)
class TokenStep:
    """What is known of a step in the store.

    Attributes
    ----------
    step : int
    source : str
        The checkpoint.
    fingerprint : str
        Of its content.
    identity : mapping
        What tells, without reading a weight, that the checkpoint is the same.
    engine : mapping
        That computed it: name, device, dtype.
    versions : mapping of str to str
    """

    step: int
    source: str
    fingerprint: str
    identity: Mapping[str, Any]
    engine: Mapping[str, Any]
    versions: Mapping[str, str]


class TokenStore:
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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_path(path)
        self._files = LocalFiles(self.path)
        document = self._files.read(ROOT_KEY)
        if document is None:
            raise NotAStoreError(
                f"{self.path} holds no store of log-probabilities; make one with `ckptlin logprobs RUN "
                f"--responses FILE --out {self.path}`"
            )
        try:
            self._root = json.loads(document)
            record = self._root["attributes"][_KEY]
            version = record["format_version"]
        except (ValueError, KeyError, TypeError):
            raise NotAStoreError(
                f"{self.path} is no store of log-probabilities: its {ROOT_KEY} is something else's"
            ) from None
        if version > FORMAT:
            raise StoreVersionError(
                f"{self.path} has format version {version}, and this ckptlin reads up to {FORMAT}; update "
                "ckptlin"
            )
        self.record: dict[str, Any] = record
        self._steps = tuple(TokenStep(**step) for step in record["steps"])

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
    def steps(self) -> tuple[int, ...]:
        """Committed steps, ascending."""
        return tuple(sorted(step.step for step in self._steps))

    @property
    def token_steps(self) -> tuple[TokenStep, ...]:
        """What is known of each, in the order of their rows."""
        return self._steps

    def find(self, step: int) -> TokenStep | None:
        """Return what is known of a step; None if it is not there."""
        return next((known for known in self._steps if known.step == step), None)

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
        rows = {known.step: row for row, known in enumerate(self._steps)}
        out = np.empty((len(steps), stop - start), np.float32)
        size = _chunk_size(self.num_tokens)
        for target, step in zip(out, steps, strict=True):
            if step not in rows:
                raise SelectionError(
                    f"step {step} is not in {self.path}, which holds {describe_steps(self.steps)}"
                )
            for index in range(start // size, -(-stop // size)):
                first = index * size
                lo, hi = max(start, first), min(stop, first + size)
                piece = self._chunk("logprobs", (rows[step], index), np.empty((1, size), np.float32))[0]
                target[lo - start : hi - start] = piece[lo - first : hi - first]
        return out

    def _node(self, array: str) -> dict[str, Any]:
        try:
            node: dict[str, Any] = self._root["consolidated_metadata"]["metadata"][array]
        except KeyError:
            raise SelectionError(f"{self.path} has no array {array}") from None
        return node

    def _chunk(self, array: str, index: Sequence[int], out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        key = chunk_key(array, index)
        data = self._files.read(key)
        if data is None:
            raise CorruptChunkError(f"{self._files.where(key)} is missing; compute the store anew")
        decode_plain(data, out, self._files.where(key))
        return out


class TokenStoreWriter:
    """Writes a store, while it holds its lock; see `open_token_writer`.

    Attributes
    ----------
    store : TokenStore
        As committed so far.
    """

    def __init__(self, path: Path) -> None:
        self._files = LocalFiles(path)
        self._files.sweep()
        self.store = TokenStore(path)

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
        store = self.store
        if store.find(step.step) is not None:
            raise StepConflictError(f"step {step.step} is in {store.path} already")
        row = len(store.token_steps)
        record = dict(store.record)
        record["steps"] = [*record["steps"], asdict(step)]
        for index, piece in _pieces(log_probs, _chunk_size(log_probs.size)):
            self._write(chunk_key("logprobs", (row, index)), piece.reshape(1, -1), _COMPRESSOR)
        if entropy is not None and store.entropy_step is None:
            record["entropy_step"] = step.step
            for index, piece in _pieces(entropy, _chunk_size(entropy.size)):
                self._write(chunk_key("entropy", (index,)), piece, _COMPRESSOR)
        steps = np.array([known["step"] for known in record["steps"]], np.int64)
        for index, piece in _pieces(steps, _chunk_shape(step_coordinate(1))[0]):
            self._write(chunk_key("step", (index,)), piece, _STEP_COMPRESSOR)
        _commit(self._files, record)
        self.store = TokenStore(store.path)

    def _write(self, key: str, values: np.ndarray[Any, Any], compressor: BloscCompressor) -> None:
        self._files.write_behind(key, encode_plain(np.ascontiguousarray(values), compressor))


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
    root = local_path(path)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; give a directory for the store")
    if root.is_dir() and not (root / ROOT_KEY).exists():
        others = {child.name for child in root.iterdir()} - {
            *_FIXED,
            LOCK_FILE,
            PARTIAL_DIR,
            "logprobs",
            "step",
        }
        if others:
            raise InputError(f"{root} holds something else ({min(others)}); give another --out")
    with explaining_a_full_disk(root), ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        stack.enter_context(writer_lock(root, str(root)))
        if not (root / ROOT_KEY).exists():
            _create(root, responses, tokenizer, texts)
        writer = TokenStoreWriter(root)
        if writer.store.record["responses"] != responses.digest:
            raise InputError(f"{root} holds the log-probabilities of other responses; give another --out")
        if writer.store.record["tokenizer"] != tokenizer:
            raise InputError(f"{root} was begun with another tokenizer; give another --out")
        yield writer


@contextmanager
def explaining_a_full_disk(root: Path) -> Iterator[None]:
    """Turn a full disk into a DiskFullError that names the store."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"the disk is full: {root} could not be written; free some space and give the same "
                "command again"
            ) from error
        raise


def _create(root: Path, responses: Responses, tokenizer: str | None, texts: Mapping[int, str]) -> None:
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
    files = LocalFiles(root)
    files.sweep()
    for name, values in arrays.items():
        values = values.astype(_FIXED[name][1])
        for index, piece in _pieces(values, _chunk_size(values.size)):
            files.write_behind(chunk_key(name, (index,)), encode_plain(piece, _COMPRESSOR))
    record = {
        "format_version": FORMAT,
        "created_by": f"ckptlin {__version__}",
        "responses": responses.digest,
        "num_responses": len(probes),
        "num_tokens": int(lengths.sum()),
        "tokenizer": tokenizer,
        "tokenized_here": responses.tokenized_here,
        "sizes": {name: int(values.size) for name, values in arrays.items()},
        "entropy_step": None,
        "steps": [],
    }
    _commit(files, record)


def _commit(files: LocalFiles, record: Mapping[str, Any]) -> None:
    """Write every array's metadata, then the root, which makes all of it visible."""
    nodes = _nodes(record)
    for name, node in nodes.items():
        key, data = f"{name}/{ROOT_KEY}", dump(node)
        if files.read(key) != data:
            files.write_behind(key, data)
    files.flush()
    files.sync()
    root = group_metadata({_KEY: dict(record)})
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
    files.write(ROOT_KEY, dump(root))
    files.sync()


def _nodes(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    real = from_numpy("<f4")
    num_steps, num_tokens = len(record["steps"]), record["num_tokens"]
    size = _chunk_size(num_tokens)
    codecs = _COMPRESSOR.codecs(real, delta=False)
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
            (length,), (_chunk_size(length),), dtype, _COMPRESSOR.codecs(dtype, delta=False), [dimension]
        )
    return dict(sorted(nodes.items()))


def _pieces(values: np.ndarray[Any, Any], size: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Cut an array into chunks, the last one filled up with zeros."""
    for index, lo in enumerate(range(0, values.size, size)):
        piece = np.zeros(size, values.dtype)
        piece[: values.size - lo] = values[lo : lo + size]
        yield index, piece


def _chunk_size(length: int) -> int:
    return max(1, min(length, _CHUNK))


def _chunk_shape(node: Mapping[str, Any]) -> list[int]:
    shape: list[int] = node["chunk_grid"]["configuration"]["chunk_shape"]
    return shape


def _json_bytes(data: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(data).encode(), np.uint8)


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return where a store lies; InputError if it is a URL."""
    if is_url(os.fspath(path)):
        raise InputError(f"{path} is a URL; a store of log-probabilities lies on a local disk")
    return Path(path)
