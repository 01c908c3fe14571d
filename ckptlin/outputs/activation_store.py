"""The store of sketched hidden states: a zarr v3 group (format version 1) that grows by a step at a time.

::

    states (layer, step, token, coordinate) float32     step (step) int64, in the order of computation
    response, position, token_ids (token) int32         which token of which response a state predicts

How it lies on the disk, and how a step is committed: `ckptlin.outputs.step_store`.  The names of the layers,
and how their states were sketched, are in the root's attributes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ckptlin.dtypes import from_numpy
from ckptlin.errors import InputError
from ckptlin.outputs.states import States
from ckptlin.outputs.step_store import COMPRESSOR, StepStore, StepStoreWriter, TokenStep, begun, write_array
from ckptlin.store.local_files import LocalFiles
from ckptlin.store.metadata import array_metadata, step_coordinate

__all__ = ["ActivationStore", "ActivationStoreWriter", "Sketch", "open_activation_writer"]

_CHUNK_VALUES = 1 << 18  # 1 MiB; a fit holds one chunk of every step
_FIXED = ("response", "position", "token_ids")

Sketch = Mapping[str, Any]  # seed, dim, hidden: what the matrices are made of


class ActivationStore(StepStore):
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

    KEY = "ckptlin_activations"
    FORMAT = 1
    CONTENT = "activations"
    COMMAND = "activations"
    ARRAYS = frozenset((*_FIXED, "states"))

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
    def state_steps(self) -> tuple[TokenStep, ...]:
        """What is known of each, in the order of their rows."""
        return self._steps

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
        size, dim = _chunk_tokens(self.record), self.dim
        shape = (1, 1, size, dim)
        return self._read_rows(
            np.empty((len(steps), stop - start, dim), np.float32),
            steps,
            start,
            size=size,
            chunk=lambda row, index: self._chunk("states", (layer, row, index, 0), np.empty(shape, np.float32))[
                0, 0
            ],
        )

    @classmethod
    def nodes(cls, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the metadata of every array of a store with this record, by name."""
        real, whole = from_numpy("<f4"), from_numpy("<i4")
        num_steps, size, dim = len(record["steps"]), record["num_states"], record["sketch"]["dim"]
        nodes = {
            "states": array_metadata(
                (len(record["layers"]), num_steps, size, dim),
                (1, 1, _chunk_tokens(record), dim),
                real,
                COMPRESSOR.codecs(real, delta=False),
                ["layer", "step", "token", "coordinate"],
                {"long_name": "sketched hidden state"},
            ),
            "step": step_coordinate(num_steps),
        }
        codecs = COMPRESSOR.codecs(whole, delta=False)
        return nodes | {name: array_metadata((size,), (size,), whole, codecs, ["token"]) for name in _FIXED}


class ActivationStoreWriter(StepStoreWriter[ActivationStore]):
    """Writes a store, while it holds its lock; see `open_activation_writer`.

    Attributes
    ----------
    store : ActivationStore
        As committed so far.
    """

    KIND = ActivationStore

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
        row, size = self._new_row(step), _chunk_tokens(self.store.record)
        for layer, of_layer in enumerate(states):
            for index, lo in enumerate(range(0, self.store.num_states, size)):
                piece = np.zeros((1, 1, size, self.store.dim), np.float32)
                part = of_layer[lo : lo + size]
                piece[0, 0, : len(part)] = part
                self._write("states", (layer, row, index, 0), piece)
        self._commit(step)


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
    with begun(path, ActivationStore, partial(_begin, states, layers, sketch)) as root:
        writer = ActivationStoreWriter(root)
        writer.store.check(states, layers=layers, sketch=sketch)
        yield writer


def _begin(states: States, layers: Sequence[str], sketch: Sketch, files: LocalFiles) -> dict[str, Any]:
    """Write the arrays that do not change; return the record of a store of them."""
    arrays = {
        "response": np.repeat(states.responses, [len(chosen) for chosen in states.places]),
        "position": np.concatenate(states.places),
        "token_ids": np.concatenate(
            [probe.token_ids[chosen] for probe, chosen in zip(states.probes, states.places, strict=True)]
        ),
    }
    for name, values in arrays.items():
        write_array(files, name, values.astype(np.int32), states.size)
    return {
        "states_digest": states.digest,
        "num_states": states.size,
        "num_distinct": states.num_distinct,
        "num_tokens": states.num_tokens,
        "layers": list(layers),
        "sketch": dict(sketch),
    }


def _chunk_tokens(record: Mapping[str, Any]) -> int:
    return max(1, min(int(record["num_states"]), _CHUNK_VALUES // int(record["sketch"]["dim"])))
