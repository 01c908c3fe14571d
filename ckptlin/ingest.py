"""Stream the checkpoints of a run into a trajectory store."""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.block_ingest import BlockIngester, ChunkItem
from ckptlin.checkpoints import RunTrajectories, SkippedCheckpoint, StepCheckpoint
from ckptlin.errors import CheckpointError, DiskFullError, IncompleteCheckpointError, InputError
from ckptlin.execution import Executor, batches, open_executor
from ckptlin.ingest_plan import IngestPlan, committed_file, digest, fingerprint, plan_ingest
from ckptlin.memory import format_bytes
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.segments import Jump
from ckptlin.store.layout import blocks_of
from ckptlin.store.metadata import CommittedCheckpoint
from ckptlin.store.store import TrajectoryStore, block_key
from ckptlin.store.writer import ChunkEntry, StoreWriter, sweep_leftovers
from ckptlin.trajectory import Block
from ckptlin.urls import is_url

__all__ = ["IngestResult", "ingest"]

# A chunk of 16 steps keeps one as it is, and no codec makes less than 2/3 of that; with less room than a run in
# which nothing changes would take it cannot fit.
_BEST_RATIO = 24


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did.

    Attributes
    ----------
    added, present : tuple of int
        Steps read now, and steps that were in the store already.
    skipped : tuple of SkippedCheckpoint
        Incomplete checkpoints that were left out on request.
    jumps_added : tuple of Jump
        Jumps among the steps that the store knows of now, and did not before.
    raw_bytes, stored_bytes : int
        Size of all weights in the store as they lie in checkpoints, and as they lie in the store.
    resumed_chunks : int
        Chunks that an interrupted ingest had already written.
    """

    store: TrajectoryStore = field(repr=False)
    added: tuple[int, ...]
    present: tuple[int, ...]
    skipped: tuple[SkippedCheckpoint, ...]
    jumps_added: tuple[Jump, ...]
    raw_bytes: int
    stored_bytes: int
    resumed_chunks: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "store": self.store.location,
            "steps": list(self.store.steps),
            "steps_added": list(self.added),
            "steps_present": list(self.present),
            "skipped": [{"step": s.step, "path": str(s.path), "reason": s.reason} for s in self.skipped],
            "jumps": [jump.to_dict() for jump in self.store.jumps],
            "jumps_added": [jump.to_dict() for jump in self.jumps_added],
            "tensors": len(self.store.tensors),
            "params": sum(t.num_params for t in self.store.tensors.values()),
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "ratio": self.raw_bytes / self.stored_bytes if self.stored_bytes else None,
            "resumed_chunks": self.resumed_chunks,
            "elapsed_s": self.elapsed_s,
        }


def ingest(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    store: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    replace_steps: bool = False,
    skip_incomplete: bool = False,
    compressor: str = "pack",
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    scheduler: str | None = None,
    processes: bool = False,
    progress: Progress = NO_PROGRESS,
) -> IngestResult:
    """Stream the checkpoints of a run into a trajectory store.

    A store that is there is appended to; steps that are in it already, with the same content, are left alone.
    A killed ingest is gone on with by the same call.  Until the end the store shows what it held before.  Jumps
    that the trainer's record lists (`ckptlin.segments`) are kept as far as they lie among the store's steps,
    also where nothing but a jump is new.

    Parameters
    ----------
    run : path-like, or sequence of path-like or ``"STEP=PATH"``
        See `ckptlin.checkpoints.discover`.
    store : path-like
        Directory of the store, or a URL that fsspec writes to, such as ``s3://bucket/run.store``.
    base : path-like, optional
        Model that training began from, as step 0.
    replace_steps : bool
        Let a checkpoint take the place of a step that is there with other content.
    skip_incomplete : bool
        Leave incomplete checkpoints out, and report them.
    compressor : str
        Of a new store: ``pack`` (fast), ``archive`` (half the size, written much more slowly), or one of the
        general ones, ``lz4`` and ``zstd``.
    memory_bytes : int, optional
        Budget for resident memory; default `ckptlin.memory.default_budget`.
    num_workers : int, optional
        Threads; default all processors, fewer if memory is short.
    scheduler : str, optional
    processes : bool
        Where chunks are written, see `ckptlin.execution.open_executor`.

    Raises
    ------
    CheckpointError
        If a checkpoint is missing, incomplete, malformed or does not fit the others.
    StepConflictError
        If a step is in the store with other content, and ``replace_steps`` is not set; or if a store at a URL
        would have to be built anew.
    StoreError
        If a URL cannot be reached.
    StoreLockedError, MemoryBudgetError, DiskFullError
    """
    started = time.perf_counter()
    plan = plan_ingest(
        run,
        store,
        base=base,
        replace_steps=replace_steps,
        skip_incomplete=skip_incomplete,
        compressor=compressor,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
        progress=progress,
    )
    with plan.run:
        resumed = 0
        if plan.added:
            _check_disk(plan)
            workers = open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes)
            committed, resumed = _write(plan, workers, progress)
        elif plan.store is not None and plan.record.jumps != plan.store.jumps:
            with StoreWriter(plan.location, fresh=False) as writer:
                committed = writer.commit(replace(plan.record, commit=plan.record.commit + 1))
        elif plan.store is not None:
            sweep_leftovers(plan.location)
            committed = plan.store
        else:
            raise InputError("there is nothing to ingest")
    raw = sum(t.num_bytes for t in committed.tensors.values()) * len(committed.steps)
    return IngestResult(
        store=committed,
        added=plan.added,
        present=plan.present,
        skipped=plan.run.skipped,
        jumps_added=plan.jumps_added,
        raw_bytes=raw,
        stored_bytes=committed.num_stored_bytes(),
        resumed_chunks=resumed,
        elapsed_s=time.perf_counter() - started,
    )


def _check_disk(plan: IngestPlan) -> None:
    if is_url(plan.location):
        return
    directory = Path(plan.location)
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    needed = plan.bytes_in // _BEST_RATIO
    if free < needed:
        raise DiskFullError(
            f"the store {plan.location} will take at least {format_bytes(needed)}, but its disk has "
            f"{format_bytes(free)} free; free some space, or put the store elsewhere"
        )


class _Checksums:
    """crc32c of every block of the checkpoints that are read; in arrays, as a large model has millions."""

    def __init__(self, plan: IngestPlan, blocks: Mapping[str, Sequence[Block]]) -> None:
        self._specs = plan.record.tensors
        self._columns = {step: i for i, step in enumerate(plan.added)}
        self._ordinals = {
            (block.tensor, block.start): i for of_tensor in blocks.values() for i, block in enumerate(of_tensor)
        }
        # (num_blocks, num_added) uint32 each
        self.tables = {
            name: np.zeros((len(of_tensor), len(plan.added)), np.uint32) for name, of_tensor in blocks.items()
        }

    def add(self, block: Block, steps: Sequence[int], checksums: Sequence[int]) -> None:
        """Keep the checksums of a block at some steps."""
        ordinal = self._ordinals[block.tensor, block.start]
        for step, value in zip(steps, checksums, strict=True):
            self.tables[block.tensor][ordinal, self._columns[step]] = value

    def fingerprint(self, step: int) -> str:
        """Hash the content of a checkpoint that was read."""
        column = self._columns[step]
        of_step = {name: table[:, column].tolist() for name, table in self.tables.items()}
        return fingerprint(self._specs, of_step)


def _write(
    plan: IngestPlan, workers: AbstractContextManager[Executor], progress: Progress
) -> tuple[TrajectoryStore, int]:
    record = plan.record
    num_kept = len(plan.store.steps) if plan.store is not None and not plan.rebuild else 0
    chunk_rows = range(num_kept // record.chunk_steps, -(-len(plan.rows) // record.chunk_steps))
    blocks = {t.name: blocks_of(t, record.param_chunks[t.name]) for t in record.tensors}
    every = [block for of_tensor in blocks.values() for block in of_tensor]
    if plan.store is not None and plan.rebuild and plan.store.record.fits:
        progress.note(
            f"{plan.location} is built anew, because a step lies before its last one or is replaced; its fits "
            f"({', '.join(plan.store.record.fits)}) go: run `ckptlin fit` again"
        )
    if plan.store is not None and plan.rebuild and plan.store.record.gram:
        progress.note(f"with it go the Gram matrices of {plan.location}: run `ckptlin gram` again")
    specs = {t.name: t for t in record.tensors}
    chunk_params = {name: math.prod(chunk) for name, chunk in record.param_chunks.items()}
    with (
        StoreWriter(plan.location, fresh=plan.store is None or plan.rebuild) as writer,
        workers as executor,
        progress.phase("ingest", plan.bytes_in) as advance,
    ):
        writer.check_follows(record.commit)
        checksums = _Checksums(plan, blocks)
        new_steps = {
            chunk_row: [row.step for row in plan.rows_of(chunk_row) if row.source is not None]
            for chunk_row in chunk_rows
        }

        def collect(batch: Sequence[ChunkItem], entries: Sequence[ChunkEntry]) -> None:
            for item, entry in zip(batch, entries, strict=True):
                block, steps = item.block, new_steps[item.chunk_row]
                if executor.is_remote:
                    writer.note_chunk(entry)
                checksums.add(block, steps, entry.checksums)
                advance(block.num_params * specs[block.tensor].dtype.itemsize * len(steps))

        run_rows = {step: i for i, step in enumerate(plan.run.steps)}
        done = writer.begin(_identity(plan))
        ingester = BlockIngester(
            run=RunTrajectories(plan.run, partition=blocks_of),
            rows=[(row.old_row, run_rows.get(row.step) if row.source else None) for row in plan.rows],
            store=plan.store,
            chunk_steps=record.chunk_steps,
            compressor=record.compressor,
            files=writer.files,
            note=writer.note_chunk,
        )
        batched: list[list[ChunkItem]] = []
        for chunk_row in chunk_rows:
            for batch in batches(every):
                items = [ChunkItem(chunk_row, block, chunk_params[block.tensor]) for block in batch]
                found = [item for item in items if block_key(item.block, chunk_row) in done]
                collect(found, [done[block_key(item.block, chunk_row)] for item in found])
                batched.append([item for item in items if item not in found])
        executor.run(ingester, [items for items in batched if items], collect, ahead=ingester.prefetch)
        writer.files.flush()
        _check_untouched(plan)
        checkpoints, blobs = _keep_files(plan, writer, checksums)
        newest = plan.rows[-1].source
        committed = replace(
            record,
            checkpoints=checkpoints,
            commit=record.commit + 1,
            blobs=blobs,
            tied=_tied(plan, checksums.tables),
            config=_config(newest) if newest is not None else record.config,
        )
        return writer.commit(committed), len(done)


def _identity(plan: IngestPlan) -> dict[str, Any]:
    """What a journal belongs to: the same source files in the same rows of the same store."""
    return {
        "rows": [
            [
                row.step,
                row.old_row,
                [str(row.source.path), [[f.name, f.num_bytes, f.mtime_ns] for f in row.source.checkpoint.files]]
                if row.source
                else None,
            ]
            for row in plan.rows
        ],
        "commit": plan.record.commit,
        "chunk_steps": plan.record.chunk_steps,
        "compressor": plan.record.compressor.name,
        "tensors": len(plan.record.tensors),
    }


def _check_untouched(plan: IngestPlan) -> None:
    """Raise if a source file was changed while it was read: rows of two versions would be mixed."""
    for row in plan.rows:
        if row.source is None:
            continue
        path = row.source.checkpoint.path
        for file in row.source.checkpoint.files:
            try:
                stat = (path / file.name if path.is_dir() else path).stat()
            except FileNotFoundError as error:
                raise IncompleteCheckpointError(
                    f"{file.name} of checkpoint step {row.step} ({path}) was deleted while it was read; "
                    "keep checkpoints until they are ingested, then run the command again"
                ) from error
            if (stat.st_size, stat.st_mtime_ns) != (file.num_bytes, file.mtime_ns):
                raise CheckpointError(
                    f"{file.name} of checkpoint step {row.step} ({path}) was changed while it was read; "
                    "wait until the trainer has saved it, then run the command again"
                )


def _keep_files(
    plan: IngestPlan, writer: StoreWriter, checksums: _Checksums
) -> tuple[tuple[CommittedCheckpoint, ...], dict[str, int]]:
    """Write headers and sidecar files, each content once; return the checkpoints' records and all sizes."""
    committed = []
    blobs: dict[str, int] = {}
    for row in plan.rows:
        if row.source is None:
            if plan.store is None or row.old_row is None:
                continue
            kept = plan.store.checkpoints[row.old_row]
            needed = [f.header for f in kept.files] + list(kept.sidecars.values())
            for name in needed:
                if name not in blobs:
                    blobs[name] = plan.store.record.blobs[name]
                    if plan.rebuild:
                        writer.write_blob(name, plan.store.read_blob(name))
            committed.append(kept)
            continue
        checkpoint = row.source.checkpoint
        contents = {name: path.read_bytes() for name, path in checkpoint.sidecars.items()}
        for data in [f.header for f in checkpoint.files] + list(contents.values()):
            if digest(data) not in blobs:
                blobs[digest(data)] = len(data)
                writer.write_blob(digest(data), data)
        committed.append(
            CommittedCheckpoint(
                step=row.step,
                source=str(row.source.path),
                fingerprint=checksums.fingerprint(row.step),
                files=tuple(committed_file(f) for f in checkpoint.files),
                sidecars={name: digest(data) for name, data in sorted(contents.items())},
            )
        )
    return tuple(committed), blobs


def _tied(plan: IngestPlan, checksums: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, str]:
    """Find names that are another name's tensor: without bytes of their own, or with the same in every step.

    Bytes alone do not tie tensors (two vectors of ones are no pair); the configuration has to say so.
    """
    sources = [row.source.checkpoint for row in plan.rows if row.source is not None]
    tied = dict(plan.record.tied)
    for checkpoint in sources:
        tied |= checkpoint.tied
    names = {t.name: t for t in plan.record.tensors}
    says_tied = any(_says_tied(checkpoint.config) for checkpoint in sources)
    heads = [n for n in names if n.endswith("lm_head.weight")]
    embeddings = [n for n in names if n.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]
    if says_tied and len(heads) == len(embeddings) == 1 and (plan.store is None or heads[0] in tied):
        tied[heads[0]] = embeddings[0]
    for alias, target in list(tied.items()):
        if alias in names and not np.array_equal(checksums[alias], checksums[target]):
            del tied[alias]
    return tied


def _config(source: StepCheckpoint) -> dict[str, Any] | None:
    config = source.checkpoint.config
    return None if config is None else dict(config)


def _says_tied(config: Mapping[str, Any] | None) -> bool:
    if config is None:
        return False
    text = config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return bool(config.get("tie_word_embeddings", nested))
