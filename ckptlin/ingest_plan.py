"""What an ingest would do, worked out before anything is written."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import google_crc32c
import numpy as np

from ckptlin._version import __version__
from ckptlin.checkpoints import Run, StepCheckpoint, WeightFile, check_consistent, discover
from ckptlin.errors import CheckpointMismatchError, InputError, StepConflictError
from ckptlin.execution import available_workers
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.naming import encode_name
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.segments import Jump, jumps_among, merge_jumps
from ckptlin.store.chunk_codec import COMPRESSORS
from ckptlin.store.layout import chunk_steps, param_chunk_shape
from ckptlin.store.metadata import ROOT_KEY, CommittedFile, StoreRecord
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.url_files import open_files
from ckptlin.trajectory import TensorSpec
from ckptlin.urls import is_url, local_path

__all__ = ["IngestPlan", "Row", "checksum", "committed_file", "digest", "fingerprint", "plan_ingest"]


@dataclass(frozen=True)
class Row:
    """Where a step of the new store comes from: a checkpoint, or a row of the store that is there."""

    step: int
    source: StepCheckpoint | None
    old_row: int | None


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest would do.

    Attributes
    ----------
    added : tuple of int
        Steps that would be read from checkpoints.
    present : tuple of int
        Steps that are in the store already, with the same content.
    location : str
        Absolute path, or URL, of the store.
    rebuild : bool
        Whether a new store would be written beside the old one and take its place, because a step lies before
        the store's last one or is replaced.
    bytes_in : int
        Bytes that would be read from checkpoints.
    record : StoreRecord
        Of the new store, or of that which is there, with the jumps that it would have then.
    memory : MemoryPlan
    """

    run: Run
    store: TrajectoryStore | None
    location: str
    rows: tuple[Row, ...]
    added: tuple[int, ...]
    present: tuple[int, ...]
    rebuild: bool
    bytes_in: int
    record: StoreRecord
    memory: MemoryPlan

    @property
    def jumps_added(self) -> tuple[Jump, ...]:
        """Jumps that the store does not know of yet, or otherwise."""
        known = () if self.store is None else self.store.jumps
        return tuple(jump for jump in self.record.jumps if jump not in known)

    def rows_of(self, chunk_row: int) -> tuple[Row, ...]:
        """Return the rows that a row of chunks holds."""
        size = self.record.chunk_steps
        return self.rows[chunk_row * size : (chunk_row + 1) * size]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "store": self.location,
            "steps_added": list(self.added),
            "steps_present": list(self.present),
            "rebuild": self.rebuild,
            "jumps_added": [jump.to_dict() for jump in self.jumps_added],
            "tensors": len(self.record.tensors),
            "params": sum(t.num_params for t in self.record.tensors),
            "bytes_in": self.bytes_in,
            "workers": self.memory.num_workers,
            "peak_memory_bytes": self.memory.peak_bytes,
        }


def plan_ingest(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    replace_steps: bool = False,
    skip_incomplete: bool = False,
    compressor: str = "pack",
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> IngestPlan:
    """Work out what `ingest` would do; same parameters and errors."""
    if compressor not in COMPRESSORS:
        raise InputError(f"there is no codec {compressor!r}; choose one of {', '.join(sorted(COMPRESSORS))}")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    location = open_files(store if is_url(store) else os.path.abspath(local_path(store))).where("")
    found = discover(run, base=base, skip_incomplete=skip_incomplete)
    check_consistent(found.checkpoints)
    existing = TrajectoryStore(location) if open_files(location).exists(ROOT_KEY) else None
    specs = tuple(found.checkpoints[0].checkpoint.tensors.values())
    for spec in specs:
        encode_name(spec.name)  # a name that is too long is told now, not in the middle of the work
    if existing is None:
        record = StoreRecord(
            tensors=specs,
            param_chunks={t.name: param_chunk_shape(t.shape) for t in specs},
            chunk_steps=chunk_steps(len(found.checkpoints)),
            compressor=COMPRESSORS[compressor],
            checkpoints=(),
            commit=0,
            created_by=f"ckptlin {__version__}",
        )
        rows = tuple(Row(c.step, c, None) for c in found.checkpoints)
        present: tuple[int, ...] = ()
        rebuild = False
    else:
        _check_same_model(existing, found.checkpoints[0])
        rows, present, rebuild = _merge(existing, found, replace_steps, progress)
        record = existing.record
        if rebuild and is_url(location):
            raise StepConflictError(
                f"{location} would have to be built anew, because a step lies before its last one "
                f"({existing.steps[-1]}) or is replaced, and nothing at a URL takes another's place in one "
                "step; ingest the run into a store at a new URL"
            )
        if rebuild:
            record = replace(record, chunk_steps=chunk_steps(len(rows)), fits={}, gram=None)
    record = replace(record, jumps=_jumps(existing, found, rows))
    added = [row.source for row in rows if row.source is not None]
    widest = max((_chunk_bytes(record, t) for t in specs), default=1)
    memory = MemoryPlan.within(
        default_budget() if memory_bytes is None else memory_bytes,
        "ingest",
        # The block, and at worst as much compressed, twice while the bytes are put together; of random bits the
        # archive codec takes another two blocks while it works, its result among them.
        3 * widest,
        num_workers or available_workers(),
        extra_bytes=open_files(location).behind_bytes,
    )
    return IngestPlan(
        run=found,
        store=existing,
        location=location,
        rows=rows,
        added=tuple(c.step for c in added),
        present=present,
        rebuild=rebuild,
        bytes_in=sum(t.num_bytes for t in specs) * len(added),
        record=record,
        memory=memory,
    )


def fingerprint(specs: Iterable[TensorSpec], checksums: Mapping[str, Sequence[int]]) -> str:
    """Hash the content of a checkpoint.

    Parameters
    ----------
    specs : iterable of TensorSpec
        All tensors, in any order.
    checksums : mapping of str to sequence of int
        For each tensor, the crc32c of each of its blocks.
    """
    items = sorted((t.name, t.dtype.zarr, list(t.shape), list(checksums[t.name])) for t in specs)
    return hashlib.blake2b(json.dumps(items).encode(), digest_size=16).hexdigest()


def _chunk_bytes(record: StoreRecord, spec: TensorSpec) -> int:
    params = int(np.prod(record.param_chunks[spec.name], dtype=np.int64))
    return record.chunk_steps * params * spec.dtype.itemsize


def _check_same_model(store: TrajectoryStore, found: StepCheckpoint) -> None:
    stored, given = store.tensors, found.checkpoint.tensors
    here = f"checkpoint step {found.step} ({found.path})"
    for name in stored:
        if name not in given:
            raise CheckpointMismatchError(
                f"{here} has no tensor `{name}`, but the store {store.location} has; "
                "ingest runs of different models into different stores"
            )
    for name, spec in given.items():
        if name not in stored:
            raise CheckpointMismatchError(
                f"tensor `{name}` in {here} is not in the store {store.location}; "
                "ingest runs of different models into different stores"
            )
        for what, ours, theirs in (
            ("shape", spec.shape, stored[name].shape),
            ("dtype", spec.dtype.zarr, stored[name].dtype.zarr),
        ):
            if ours != theirs:
                raise CheckpointMismatchError(
                    f"tensor `{name}` in {here} has {what} {ours}, but {store.location} has {theirs}; "
                    "ingest runs of different models into different stores"
                )


def _merge(
    store: TrajectoryStore, found: Run, replace_steps: bool, progress: Progress
) -> tuple[tuple[Row, ...], tuple[int, ...], bool]:
    """Order the store's rows and the run's checkpoints; tell which are there, and whether to build anew."""
    rows = {step: Row(step, None, row) for row, step in enumerate(store.steps)}
    present, replaced = [], []
    for item in found.checkpoints:
        if item.step not in rows:
            rows[item.step] = Row(item.step, item, None)
        elif _is_same(store, item, progress):
            present.append(item.step)
        elif replace_steps:
            rows[item.step] = Row(item.step, item, None)
            replaced.append(item.step)
        else:
            raise StepConflictError(
                f"step {item.step} is in {store.location} with other content than {item.path}; it came from "
                f"{store.checkpoints[store.row_of(item.step)].source}; --replace puts the new one in its place"
            )
    last = store.steps[-1]
    earlier = any(row.source is not None and row.step < last for row in rows.values())
    return tuple(rows[step] for step in sorted(rows)), tuple(present), earlier or bool(replaced)


def _jumps(store: TrajectoryStore | None, found: Run, rows: Sequence[Row]) -> tuple[Jump, ...]:
    """Unite the store's jumps with the run's, as far as they divide the rows.

    The first step behind a jump is what it led to: where another checkpoint takes its place, only the record of
    the run that this comes from says whether a jump leads there still.
    """
    kept: list[Jump] = []
    if store is not None:
        replaced = {row.step for row in rows if row.source is not None} & {*store.steps}
        for jump in store.jumps:
            landing = next((step for step in store.steps if step >= jump.to_step), None)
            if landing not in replaced:
                kept.append(jump)
    return jumps_among([row.step for row in rows], merge_jumps(kept, found.jumps))


def _is_same(store: TrajectoryStore, item: StepCheckpoint, progress: Progress) -> bool:
    """Compare a checkpoint with what the store holds: by size and time of its files, else by content."""
    committed = store.checkpoints[store.row_of(item.step)]
    if tuple(committed_file(f) for f in item.checkpoint.files) == committed.files:
        return True
    num_bytes = sum(t.num_bytes for t in store.tensors.values())
    with progress.phase(f"check step {item.step}", num_bytes) as advance:
        checksums: dict[str, list[int]] = {}
        for spec in store.tensors.values():
            checksums[spec.name] = []
            for block in store.blocks(spec.name):
                row = np.empty(block.num_params, spec.dtype.bits)
                item.checkpoint.read_into(spec.name, block.start, row)
                checksums[spec.name].append(checksum(row))
                advance(row.nbytes)
    return fingerprint(store.tensors.values(), checksums) == committed.fingerprint


def checksum(row: np.ndarray[Any, Any]) -> int:
    """Return the crc32c of some bits."""
    return int(google_crc32c.value(row.view(np.uint8)))


def digest(data: bytes) -> str:
    """Return the hash under which a store keeps a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def committed_file(file: WeightFile) -> CommittedFile:
    """Return what a store records of a file of weights."""
    return CommittedFile(file.name, file.num_bytes, file.mtime_ns, digest(file.header))
