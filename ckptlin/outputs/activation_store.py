"""The store of sketched hidden states: a zarr v3 group (format version 1) that grows by a step at a time.

::

    states (layer, step, token, coordinate) float32     step (step) int64, in the order of computation
    response, position, token_ids (token) int32         which token of which response a state predicts

It commits as the store of log-probabilities does (`ckptlin.outputs.token_store`): by the root's ``zarr.json``,
written last and in one rename, with what is known of each step and the consolidated metadata of every array.
The names of the layers, and how their states were sketched, are in the root's attributes.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.dtypes import from_numpy
from ckptlin.errors import (
    CorruptChunkError,
    InputError,
    NotAStoreError,
    SelectionError,
    StepConflictError,
    StoreVersionError,
)
from ckptlin.outputs.states import States
from ckptlin.outputs.token_store import TokenStep, explaining_a_full_disk
from ckptlin.store.chunk_codec import BloscCompressor, decode_plain, encode_plain
from ckptlin.store.local_files import PARTIAL_DIR, LocalFiles
from ckptlin.store.lock import LOCK_FILE, writer_lock
from ckptlin.store.metadata import ROOT_KEY, STEP_CHUNK, array_metadata, dump, group_metadata, step_coordinate
from ckptlin.store.store import chunk_key, describe_steps
from ckptlin.urls import is_url

__all__ = ["ActivationStore", "ActivationStoreWriter", "Sketch", "open_activation_writer"]

FORMAT = 1
_KEY = "ckptlin_activations"
_CHUNK_VALUES = 1 << 18  # 1 MiB; a fit holds one chunk of every step
_COMPRESSOR = BloscCompressor("zstd", 3)
_STEP_COMPRESSOR = BloscCompressor("zstd", 1, "noshuffle")
_FIXED = ("response", "position", "token_ids")

Sketch = Mapping[str, Any]  # seed, dim, hidden: what the matrices are made of


class ActivationStore:
    """Sketched hidden states, as committed.

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
        self.path = _local(path)
        self._files = LocalFiles(self.path)
        document = self._files.read(ROOT_KEY)
        if document is None:
            raise NotAStoreError(
                f"{self.path} holds no store of activations; make one with `ckptlin activations RUN "
                f"--responses FILE --out {self.path}`"
            )
        try:
            record = json.loads(document)["attributes"][_KEY]
            version = record["format_version"]
        except (ValueError, KeyError, TypeError):
            raise NotAStoreError(
                f"{self.path} is no store of activations: its {ROOT_KEY} is something else's"
            ) from None
        if version > FORMAT:
            raise StoreVersionError(
                f"{self.path} has format version {version}, and this ckptlin reads up to {FORMAT}; "
                "update ckptlin"
            )
        self.record: dict[str, Any] = record
        self._steps = tuple(TokenStep(**step) for step in record["steps"])

    def __repr__(self) -> str:
        return f"<ActivationStore {self.path}: {len(self._steps)} steps, {self.num_states:,} states>"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, from the embedding to the last norm."""
        return tuple(self.record["layers"])

    @property
    def num_states(self) -> int:
        """In each layer at each step."""
        return int(self.record["num_states"])

    @property
    def dim(self) -> int:
        """Coordinates that are kept of a state."""
        return int(self.record["sketch"]["dim"])

    @property
    def steps(self) -> tuple[int, ...]:
        """Committed steps, ascending."""
        return tuple(sorted(step.step for step in self._steps))

    @property
    def state_steps(self) -> tuple[TokenStep, ...]:
        """What is known of each, in the order of their rows."""
        return self._steps

    def find(self, step: int) -> TokenStep | None:
        """Return what is known of a step; None if it is not there."""
        return next((known for known in self._steps if known.step == step), None)

    def check(self, states: States, *, layers: Sequence[str], sketch: Sketch) -> None:
        """Refuse to go on with other states, another model or another sketch; InputError."""
        if self.record["states_digest"] != states.digest:
            raise InputError(
                f"{self.path} holds the states of other tokens; give another --out, or --seed and --tokens "
                "as before"
            )
        if self.layers != tuple(layers) or self.record["sketch"]["hidden"] != sketch["hidden"]:
            raise InputError(f"{self.path} holds the states of a model of another shape; give another --out")
        if self.record["sketch"] != dict(sketch):
            raise InputError(
                f"{self.path} was begun with another sketch; give --dim and --seed as before, or another --out"
            )

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Divide a layer's states as they are stored: the first of each part, and the one after its last."""
        size = _chunk_tokens(self.record)
        for lo in range(0, self.num_states, size):
            yield lo, min(lo + size, self.num_states)

    def read_tokens(self, array: str) -> np.ndarray[Any, Any]:
        """Read ``response``, ``position`` or ``token_ids``, ``(num_states,) int32``."""
        return self._chunk(array, (0,), np.empty(self.num_states, np.int32))

    def read_states(
        self, layer: int, steps: Sequence[int], start: int = 0, stop: int | None = None
    ) -> np.ndarray[Any, Any]:
        """Read some states of a layer, ``(len(steps), stop - start, dim) float32``.

        Raises
        ------
        SelectionError
            If a step is not in the store.
        CorruptChunkError
            If a chunk is missing or damaged.
        """
        stop = self.num_states if stop is None else stop
        rows = {known.step: row for row, known in enumerate(self._steps)}
        out = np.empty((len(steps), stop - start, self.dim), np.float32)
        size = _chunk_tokens(self.record)
        for target, step in zip(out, steps, strict=True):
            if step not in rows:
                raise SelectionError(
                    f"step {step} is not in {self.path}, which holds {describe_steps(self.steps)}"
                )
            for index in range(start // size, -(-stop // size)):
                first = index * size
                lo, hi = max(start, first), min(stop, first + size)
                key = (layer, rows[step], index, 0)
                piece = self._chunk("states", key, np.empty((1, 1, size, self.dim), np.float32))[0, 0]
                target[lo - start : hi - start] = piece[lo - first : hi - first]
        return out

    def _chunk(self, array: str, index: Sequence[int], out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        key = chunk_key(array, index)
        data = self._files.read(key)
        if data is None:
            raise CorruptChunkError(f"{self._files.where(key)} is missing; compute the store anew")
        decode_plain(data, out, self._files.where(key))
        return out


class ActivationStoreWriter:
    """Writes a store, while it holds its lock; see `open_activation_writer`.

    Attributes
    ----------
    store : ActivationStore
        As committed so far.
    """

    def __init__(self, path: Path) -> None:
        self._files = LocalFiles(path)
        self._files.sweep()
        self.store = ActivationStore(path)

    def append(self, step: TokenStep, states: np.ndarray[Any, Any]) -> None:
        """Commit a step.

        Parameters
        ----------
        step : TokenStep
        states : (num_layers, num_states, dim) float32

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
        row, size = len(store.state_steps), _chunk_tokens(store.record)
        record = dict(store.record)
        record["steps"] = [*record["steps"], asdict(step)]
        for layer, of_layer in enumerate(states):
            for index, lo in enumerate(range(0, store.num_states, size)):
                piece = np.zeros((1, 1, size, store.dim), np.float32)
                part = of_layer[lo : lo + size]
                piece[0, 0, : len(part)] = part
                self._write(chunk_key("states", (layer, row, index, 0)), piece, _COMPRESSOR)
        steps = np.array([known["step"] for known in record["steps"]], np.int64)
        for index, lo in enumerate(range(0, steps.size, STEP_CHUNK)):
            coordinate = np.zeros(STEP_CHUNK, np.int64)
            coordinate[: steps.size - lo] = steps[lo : lo + STEP_CHUNK]
            self._write(chunk_key("step", (index,)), coordinate, _STEP_COMPRESSOR)
        _commit(self._files, record)
        self.store = ActivationStore(store.path)

    def _write(self, key: str, values: np.ndarray[Any, Any], compressor: BloscCompressor) -> None:
        self._files.write_behind(key, encode_plain(values, compressor))


@contextmanager
def open_activation_writer(
    path: str | os.PathLike[str], states: States, *, layers: Sequence[str], sketch: Sketch
) -> Iterator[ActivationStoreWriter]:
    """Make a store for some states, or go on with the one that is there; one process at a time.

    Parameters
    ----------
    path : path-like
        Local directory.
    states : States
    layers : sequence of str
    sketch : mapping
        ``seed``, ``dim`` and ``hidden``.

    Raises
    ------
    InputError
        If it is a URL, holds something else, or is a store of other states.
    StoreLockedError
        If another process writes to it.
    """
    root = _local(path)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; give a directory for the store")
    if root.is_dir() and not (root / ROOT_KEY).exists():
        others = {child.name for child in root.iterdir()} - {*_FIXED, LOCK_FILE, PARTIAL_DIR, "states", "step"}
        if others:
            raise InputError(f"{root} holds something else ({min(others)}); give another --out")
    with explaining_a_full_disk(root), ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        stack.enter_context(writer_lock(root, str(root)))
        if not (root / ROOT_KEY).exists():
            _create(root, states, layers, sketch)
        writer = ActivationStoreWriter(root)
        writer.store.check(states, layers=layers, sketch=sketch)
        yield writer


def _create(root: Path, states: States, layers: Sequence[str], sketch: Sketch) -> None:
    files = LocalFiles(root)
    files.sweep()
    arrays = {
        "response": np.repeat(states.responses, [len(chosen) for chosen in states.places]),
        "position": np.concatenate(states.places),
        "token_ids": np.concatenate(
            [probe.token_ids[chosen] for probe, chosen in zip(states.probes, states.places, strict=True)]
        ),
    }
    for name, values in arrays.items():
        data = np.ascontiguousarray(values, np.int32)
        files.write_behind(chunk_key(name, (0,)), encode_plain(data, _COMPRESSOR))
    record = {
        "format_version": FORMAT,
        "created_by": f"ckptlin {__version__}",
        "states_digest": states.digest,
        "num_states": states.size,
        "num_distinct": states.num_distinct,
        "num_tokens": states.num_tokens,
        "layers": list(layers),
        "sketch": dict(sketch),
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
    real, whole = from_numpy("<f4"), from_numpy("<i4")
    num_steps, size, dim = len(record["steps"]), record["num_states"], record["sketch"]["dim"]
    nodes = {
        "states": array_metadata(
            (len(record["layers"]), num_steps, size, dim),
            (1, 1, _chunk_tokens(record), dim),
            real,
            _COMPRESSOR.codecs(real, delta=False),
            ["layer", "step", "token", "coordinate"],
            {"long_name": "sketched hidden state"},
        ),
        "step": step_coordinate(num_steps),
    }
    codecs = _COMPRESSOR.codecs(whole, delta=False)
    nodes |= {name: array_metadata((size,), (size,), whole, codecs, ["token"]) for name in _FIXED}
    return dict(sorted(nodes.items()))


def _chunk_tokens(record: Mapping[str, Any]) -> int:
    return max(1, min(int(record["num_states"]), _CHUNK_VALUES // int(record["sketch"]["dim"])))


def _local(path: str | os.PathLike[str]) -> Path:
    if is_url(os.fspath(path)):
        raise InputError(f"{path} is a URL; a store of activations lies on a local disk")
    return Path(path)
