"""Check every byte of a store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptlin.errors import CorruptChunkError, InputError, StaleFitError
from ckptlin.execution import Threads, available_workers, batches
from ckptlin.fit import read_summary
from ckptlin.gram import read_gram
from ckptlin.ingest_plan import checksum, digest, fingerprint
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.selection import select_rows
from ckptlin.store.store import TrajectoryStore
from ckptlin.trajectory import Block

__all__ = ["VerifyResult", "verify"]


@dataclass(frozen=True)
class VerifyResult:
    """What was checked, and what is wrong.

    Attributes
    ----------
    num_chunks : int
        Chunks that were read, decoded and checked.
    raw_bytes : int
        Bytes that they decode to.
    problems : tuple of str
        One sentence each; empty if all is well.
    """

    num_chunks: int
    raw_bytes: int
    problems: tuple[str, ...]
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "ok": not self.problems,
            "chunks": self.num_chunks,
            "raw_bytes": self.raw_bytes,
            "problems": list(self.problems),
            "elapsed_s": self.elapsed_s,
        }


def verify(
    store: TrajectoryStore,
    *,
    steps: str | None = None,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> VerifyResult:
    """Decode every chunk, and compare every checkpoint with the fingerprint taken when it was read.

    ``steps`` is a window (`ckptlin.selection.select_rows`): only chunks that hold these steps are then read.

    That the fingerprints agree shows that the store gives back the very bits that were ingested, not only that
    its files are as they were written.

    Raises
    ------
    InputError, MemoryBudgetError
    """
    started = time.perf_counter()
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    selected = [store.steps[row] for row in select_rows(store.steps, steps)]
    chunk_rows = sorted({store.row_of(step) // store.record.chunk_steps for step in selected})
    widest = max((store.chunk_params(t.name) * t.dtype.itemsize for t in store.tensors.values()), default=1)
    memory = MemoryPlan.within(
        default_budget() if memory_bytes is None else memory_bytes,
        "verify",
        2 * store.record.chunk_steps * widest,
        num_workers or available_workers(),
    )
    blocks = [block for name in store.tensors for block in store.blocks(name)]
    tasks = [(row, batch) for row in chunk_rows for batch in batches(blocks)]
    num_read = sum(len(store.steps_of_row(row)) for row in chunk_rows)
    total = sum(t.num_bytes for t in store.tensors.values()) * num_read
    problems: list[str] = []
    ordinals = {(b.tensor, b.start): i for name in store.tensors for i, b in enumerate(store.blocks(name))}
    # crc32c of each tensor's blocks, (num_blocks, num_steps), −1 where none was taken; in arrays, as a large
    # model has millions.
    checksums = {
        name: np.full((len(store.blocks(name)), len(store.steps)), -1, np.int64) for name in store.tensors
    }
    with progress.phase("verify", total) as advance:

        def work(task: tuple[int, tuple[Block, ...]]) -> None:
            chunk_row, batch = task
            first = chunk_row * store.record.chunk_steps
            num_steps = len(store.steps_of_row(chunk_row))
            for block in batch:
                try:
                    bits = store.read_chunk(block, chunk_row)
                except CorruptChunkError as error:
                    problems.append(str(error))
                    continue
                ordinal = ordinals[block.tensor, block.start]
                for column, row in enumerate(bits[:num_steps], start=first):
                    part = np.ascontiguousarray(row[: block.num_params])
                    checksums[block.tensor][ordinal, column] = checksum(part)
                    advance(part.nbytes)

        Threads(memory.num_workers).run(work, tasks)
    problems.sort()
    problems += _compare_fingerprints(store, checksums)
    num_fit_chunks, fit_problems = _check_fits(store)
    num_gram_chunks, gram_problems = _check_gram(store)
    problems += _check_files(store) + fit_problems + gram_problems
    num_chunks = len(blocks) * len(chunk_rows) + num_fit_chunks + num_gram_chunks + len(store.record.blobs)
    return VerifyResult(num_chunks, total, tuple(problems), time.perf_counter() - started)


def _compare_fingerprints(store: TrajectoryStore, checksums: Mapping[str, np.ndarray[Any, Any]]) -> list[str]:
    problems = []
    for column, checkpoint in enumerate(store.checkpoints):
        found = {name: table[:, column].tolist() for name, table in checksums.items()}
        if any(-1 in of_tensor for of_tensor in found.values()):
            continue  # a chunk of this step was not asked for, or could not be read, which was said
        if fingerprint(store.tensors.values(), found) != checkpoint.fingerprint:
            problems.append(
                f"step {checkpoint.step} of {store.location} does not have the content that was ingested from "
                f"{checkpoint.source}"
            )
    return problems


def _check_files(store: TrajectoryStore) -> list[str]:
    problems = []
    for name in store.record.blobs:
        try:
            if digest(store.read_blob(name)) != name:
                problems.append(f"the file kept under files/{name} does not have the content of that hash")
        except CorruptChunkError as error:
            problems.append(str(error))
    return problems


def _check_fits(store: TrajectoryStore) -> tuple[int, list[str]]:
    num_chunks = 0
    problems: list[str] = []
    for name, fit in store.record.fits.items():
        try:
            store.fit_record(name)
        except StaleFitError:
            continue  # refused wherever it could mislead
        try:
            read_summary(store, name)
        except (CorruptChunkError, StaleFitError) as error:
            problems.append(str(error))
            if isinstance(error, StaleFitError):
                continue
        for map_name in fit.maps:
            for block in _blocks(store, fit.tensors):
                num_chunks += 1
                try:
                    store.read_map(name, map_name, block)
                except CorruptChunkError as error:
                    problems.append(str(error))
    return num_chunks, problems


def _check_gram(store: TrajectoryStore) -> tuple[int, list[str]]:
    record = store.record.gram
    if record is None or store.is_stale(record):
        return 0, []  # what is stale is refused wherever it could mislead
    try:
        read_gram(store)
    except (CorruptChunkError, StaleFitError) as error:
        return len(record.tensors), [str(error)]
    return len(record.tensors), []


def _blocks(store: TrajectoryStore, tensors: Sequence[str]) -> list[Block]:
    return [block for tensor in tensors for block in store.blocks(tensor)]
