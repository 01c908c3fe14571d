"""The weights of a step, from a run or a trajectory store alike, and the next step's while one computes."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import CkptlinError, InputError
from ckptlin.ingest_plan import checksum, fingerprint
from ckptlin.store.store import TrajectoryStore
from ckptlin.template import template_of
from ckptlin.trajectory import TensorSpec, thread_buffer

if TYPE_CHECKING:
    import torch

__all__ = ["StepWeights", "WeightReader", "prefetched", "sidecar_directory"]

Source = TrajectoryStore | RunTrajectories


@dataclass(frozen=True)
class StepWeights:
    """A checkpoint in memory.

    Attributes
    ----------
    step : int
    source : str
        Where it comes from, for records and messages.
    fingerprint : str
        Of its content: the same for a checkpoint in its run and in a store.
    tensors : mapping of str to numpy.ndarray
        Of each tensor's shape and dtype; empty where only the fingerprint was asked for.
    """

    step: int
    source: str
    fingerprint: str
    tensors: Mapping[str, np.ndarray[Any, Any]] = field(repr=False)

    def torch_tensors(self) -> dict[str, "torch.Tensor"]:
        """Return the tensors for torch, sharing memory."""
        import torch

        found = {}
        for name, array in self.tensors.items():
            dtype = getattr(torch, array.dtype.name)
            flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
            found[name] = flat.view(dtype).reshape(array.shape)
        return found


class WeightReader:
    """Reads checkpoints whole, one at a time.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    keep : bool
        Whether tensors are wanted, or the fingerprint alone; a run is read for that too, which has the next
        reader find it in the system's cache.

    Attributes
    ----------
    source : TrajectoryStore or RunTrajectories
    """

    def __init__(self, source: Source, *, keep: bool = True) -> None:
        self.source = source
        self._keep = keep

    @property
    def num_bytes(self) -> int:
        """Of one checkpoint."""
        return sum(spec.num_bytes for spec in self.source.tensors.values())

    def where(self, row: int) -> str:
        """Say where a step comes from."""
        step = self.source.steps[row]
        if isinstance(self.source, TrajectoryStore):
            return f"step {step} of {self.source.location}"
        return str(self.source.checkpoints[row].path)

    def identity(self, row: int) -> dict[str, Any]:
        """Return what tells, without reading a weight, that a checkpoint is the same as before."""
        if isinstance(self.source, TrajectoryStore):
            return {"fingerprint": self.source.checkpoints[row].fingerprint}
        files = self.source.checkpoints[row].checkpoint.files
        return {"files": {file.name: [file.num_bytes, file.mtime_ns] for file in files}}

    def fingerprint(self, row: int) -> str:
        """Return the fingerprint of a checkpoint; reads it all, unless it lies in a store."""
        if isinstance(self.source, TrajectoryStore):
            return self.source.checkpoints[row].fingerprint
        return WeightReader(self.source, keep=False).read(row, lambda num_bytes: None).fingerprint

    def read(self, row: int, advance: Callable[[int], None]) -> StepWeights:
        """Read a checkpoint; ``advance`` hears of the bytes.

        Raises
        ------
        CheckpointError, CorruptChunkError
            If it is damaged.
        """
        source = self.source
        in_store = isinstance(source, TrajectoryStore)
        tensors: dict[str, np.ndarray[Any, Any]] = {}
        checksums: dict[str, list[int]] = {}
        for name, spec in source.tensors.items():
            whole = np.empty(spec.num_params if self._keep else 0, spec.dtype.bits)
            checksums[name] = []
            if in_store and not self._keep:
                continue
            for block in source.blocks(name):
                [bits] = source.read_block(block, [row], thread_buffer())
                if not in_store:
                    checksums[name].append(checksum(bits))
                if self._keep:
                    whole[block.start : block.stop] = bits
                advance(bits.nbytes)
            if self._keep:
                tensors[name] = whole.view(spec.dtype.numpy).reshape(spec.shape)
        if isinstance(source, TrajectoryStore):
            digest = source.checkpoints[row].fingerprint
        else:
            digest = fingerprint(source.tensors.values(), checksums)
        return StepWeights(source.steps[row], self.where(row), digest, tensors)

    def main_dtype(self) -> str:
        """Return the floating type that most bytes of a checkpoint have; its configuration may say another."""
        sizes: dict[str, int] = {}
        for spec in self.source.tensors.values():
            if spec.dtype.is_float:
                sizes[spec.dtype.zarr] = sizes.get(spec.dtype.zarr, 0) + spec.num_bytes
        if not sizes:
            raise InputError(
                f"{self.source.location} has no tensor of a floating type; no model computes with it"
            )
        return max(sizes, key=sizes.__getitem__)

    def check_loadable(self) -> None:
        """Refuse what cannot be computed with.

        Raises
        ------
        InputError
            If there are float8 tensors, whose scales mean something to the software that wrote them alone.
        """
        for spec in self.source.tensors.values():
            if _is_float8(spec):
                raise InputError(
                    f"tensor `{spec.name}` of {self.source.location} is {spec.dtype.zarr}, which stands "
                    "for other "
                    "numbers than it holds; save the checkpoints in bfloat16 first"
                )


@contextmanager
def prefetched(
    reader: WeightReader, rows: Sequence[int], advance: Callable[[int], None]
) -> Iterator[Iterator[StepWeights]]:
    """Give the checkpoints of some rows one after the other, each read by a thread while the one before is
    used.

    One that is taken and one that waits are in memory at a time.  What goes wrong in the thread is raised where
    the checkpoint is taken.
    """
    stop = threading.Event()

    def advance_unless_stopped(num_bytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        advance(num_bytes)

    def steps() -> Iterator[StepWeights]:
        coming = pool.submit(reader.read, rows[0], advance_unless_stopped) if rows else None
        for number in range(len(rows)):
            assert coming is not None  # noqa: S101 (one was submitted for each row)
            weights = coming.result()
            coming = None
            if number + 1 < len(rows):
                coming = pool.submit(reader.read, rows[number + 1], advance_unless_stopped)
            yield weights
            del weights

    with ThreadPoolExecutor(1, thread_name_prefix="ckptlin-weights") as pool:
        try:
            yield steps()
        finally:
            stop.set()  # at the next block, so that an error or Ctrl-C does not wait for a whole checkpoint


class _StoppedError(CkptlinError):
    """Nobody waits for this checkpoint any more."""


@contextmanager
def sidecar_directory(source: Source, row: int) -> Iterator[Path]:
    """Give a directory with a checkpoint's configuration and tokenizer, without its weights.

    Raises
    ------
    InputError
        If it has no ``config.json``.
    """
    sidecars = template_of(source, row).sidecars
    if "config.json" not in sidecars:
        raise InputError(
            f"step {source.steps[row]} of {source.location} has no config.json, without which no model "
            "can be built"
        )
    with TemporaryDirectory(prefix="ckptlin-") as directory:
        for name, data in sidecars.items():
            path = Path(directory) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        yield Path(directory)


def _is_float8(spec: TensorSpec) -> bool:
    return spec.dtype.is_float and spec.dtype.itemsize == 1
