"""The Gram matrices of a run: computed out of core, kept in a store, extended, and read back."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.block_gram import BlockGram, GramFigures, strips_of
from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import InputError, MemoryBudgetError
from ckptlin.execution import Executor, available_workers, batches, open_executor
from ckptlin.gram_matrices import GramMatrices
from ckptlin.gram_sums import GramSums
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.naming import encode_name
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.segments import segments_to_dict, warn_of_jumps
from ckptlin.selection import describe_window, fitted_tensors, row_groups, select_window
from ckptlin.store.chunk_codec import BloscCompressor, encode_plain
from ckptlin.store.metadata import (
    BLOB_COMPRESSOR,
    MAP_COMPRESSOR,
    SAMPLE_CHUNK,
    GramRecord,
    StoreRecord,
    sampled_together,
    table_chunk,
)
from ckptlin.store.store import STAGED_GRAM, TrajectoryStore, chunk_key
from ckptlin.store.writer import StoreWriter
from ckptlin.trajectory import Block, TensorSpec

__all__ = [
    "GramPlan",
    "gram",
    "gram_block_bytes",
    "gram_bytes",
    "gram_record",
    "gram_sample_size",
    "num_known_rows",
    "plan_gram",
    "read_gram",
    "stage_gram",
]

Source = TrajectoryStore | RunTrajectories

# What is kept of trajectories, all tensors together.
_SAMPLE_BYTES = 32 << 20
_MAX_SAMPLE, _MIN_SAMPLE = 256, 8
# Metadata of one array, as Python objects and as JSON (measured: 10.5 KiB).
_NODE_BYTES = 11 << 10
# Products of blocks that wait for those of an earlier one.
_NUM_WAITING = 64


@dataclass(frozen=True)
class GramPlan:
    """What a Gram pass would do.

    Attributes
    ----------
    rows : tuple of int
        Selected rows of the source's steps.
    tensors : tuple of TensorSpec
    num_known : int
        So many of the rows have their products in the store; with all of them no weight is read.
    num_held : int
        Groups of rows (rows of chunks, or 16 checkpoints) of a block that are in memory at once.
    is_kept : bool
        Whether the matrices will be kept in the store.
    bytes_in, bytes_out : int
        Raw bytes of the trajectories to read, those that are read again included, and of what is kept.
    memory : MemoryPlan
    warnings : tuple of str
        What a user should know of the steps.  `gram` leaves it to its callers, who know what for.
    """

    source: Source
    rows: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    num_known: int
    num_held: int
    is_kept: bool
    bytes_in: int
    bytes_out: int
    memory: MemoryPlan
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Selected steps."""
        return tuple(self.source.steps[row] for row in self.rows)

    @property
    def num_passes(self) -> float:
        """How often each weight is read, in the mean."""
        return self.bytes_in / max(sum(t.num_bytes for t in self.tensors) * len(self.rows), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "source": self.source.location,
            "steps": list(self.steps),
            **segments_to_dict(self.steps, self.source.jumps),
            "known_steps": self.num_known,
            "tensors": len(self.tensors),
            "params": sum(t.num_params for t in self.tensors),
            "kept": self.is_kept,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "passes": self.num_passes,
            "workers": self.memory.num_workers,
            "peak_memory_bytes": self.memory.peak_bytes,
            "warnings": list(self.warnings),
        }


def plan_gram(
    source: Source,
    *,
    steps: str | None = None,
    segment: int | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    keep: bool = True,
) -> GramPlan:
    """Work out what `gram` would do; same parameters and errors."""
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    rows = select_window(source, steps, segment)
    if len(rows) < 2:
        window = describe_window(steps, segment)
        raise InputError(
            f"Gram matrices need at least 2 checkpoints, and {source.location} "
            + (f"has only one in {window}" if window else f"has only step {source.steps[0]}")
        )
    tensors = tuple(fitted_tensors(source, include, exclude))
    is_whole = len(rows) == len(source.steps) and len(tensors) == len(fitted_tensors(source))
    num_known = num_known_rows(source, rows, tensors)
    is_kept = isinstance(source, TrajectoryStore) and keep and is_whole and num_known < len(rows)
    num_held, memory = _within(
        source,
        tensors,
        row_groups(source, rows),
        num_known,
        default_budget() if memory_bytes is None else memory_bytes,
        num_workers or available_workers(),
        gram_bytes(source, tensors, len(rows), is_kept=is_kept),
    )
    num_read = _num_rows_read(row_groups(source, rows), num_held, num_known)
    return GramPlan(
        source=source,
        rows=rows,
        tensors=tensors,
        num_known=num_known,
        num_held=num_held,
        is_kept=is_kept,
        bytes_in=num_read * sum(t.num_bytes for t in tensors),
        bytes_out=sum(_result_bytes(t, len(rows), len(tensors)) for t in tensors) if is_kept else 0,
        memory=memory,
        warnings=warn_of_jumps(
            [source.steps[row] for row in rows],
            source.jumps,
            "these figures take the extrapolation for training",
        ),
    )


def gram_sample_size(num_rows: int, num_tensors: int) -> int:
    """Choose how many trajectories of each tensor are kept."""
    return max(min(_SAMPLE_BYTES // (2 * num_rows * num_tensors), _MAX_SAMPLE), _MIN_SAMPLE)


def gram_bytes(source: Source, tensors: Sequence[TensorSpec], num_rows: int, *, is_kept: bool) -> int:
    """Bytes that the matrices and samples of all tensors take, beside the blocks in work."""
    total = sum(_result_bytes(t, num_rows, len(tensors)) for t in tensors)
    total += _NUM_WAITING * 8 * num_rows**2
    if is_kept and isinstance(source, TrajectoryStore):
        of_fits = sum(len(fit.tensors) * len(fit.maps) for fit in source.record.fits.values())
        total += _NODE_BYTES * (len(source.tensors) + of_fits + len(tensors)) + source.files.behind_bytes
    return total


def gram_block_bytes(num_params: int, num_rows: int) -> int:
    """Bytes that a block takes while its moves are multiplied, beside its rows."""
    # What each parameter moved by, in float64 at worst; the products, and copies of them.
    return 8 * num_params + 32 * num_rows**2


def _result_bytes(spec: TensorSpec, num_rows: int, num_tensors: int) -> int:
    num_sampled = min(gram_sample_size(num_rows, num_tensors), spec.num_params)
    return 8 * num_rows**2 + num_sampled * num_rows * spec.dtype.itemsize


def _within(
    source: Source,
    tensors: Sequence[TensorSpec],
    groups: Sequence[Sequence[int]],
    num_known: int,
    budget: int,
    num_workers: int,
    extra_bytes: int,
) -> tuple[int, MemoryPlan]:
    """Choose how many groups of rows to hold, and the workers that memory then allows.

    Whoever holds more reads less, but has room for fewer workers: the fewest reads for each worker win.
    """
    sizes = {
        (max((block.num_params for block in source.blocks(t.name)), default=0), t.dtype.itemsize)
        for t in tensors
    }

    def plan(num_held: int) -> MemoryPlan:
        worker_bytes = max(_block_bytes(source, groups, num_held, *size) for size in sizes)
        return MemoryPlan.within(budget, "gram", worker_bytes, num_workers, extra_bytes=extra_bytes)

    chosen = 1, plan(1)
    fewest = float("inf")
    for num_held in range(len(groups), 0, -1):
        try:
            memory = plan(num_held)
        except MemoryBudgetError:
            continue
        reads = _num_rows_read(groups, num_held, num_known) / memory.num_workers
        if reads < fewest:
            fewest, chosen = reads, (num_held, memory)
    return chosen


def _block_bytes(
    source: Source, groups: Sequence[Sequence[int]], num_held: int, num_params: int, itemsize: int
) -> int:
    """Bytes that one block takes while its moves are multiplied."""
    num_rows = sum(map(len, groups))
    held = max(sum(map(len, groups[lo:hi])) for lo, hi in strips_of(len(groups), num_held))
    is_whole = num_held >= len(groups)
    if isinstance(source, TrajectoryStore):
        # A chunk lies in memory as it was read and as it was decoded; rows of several are put together.
        rows = 2 * source.record.chunk_steps + (0 if len(groups) == 1 else held)
    else:
        rows = held + (0 if is_whole else max(map(len, groups)))
    # Rows at the borders of a strip and of the group before it.
    rows += 0 if is_whole else 3
    return rows * num_params * itemsize + gram_block_bytes(num_params, num_rows)


def _num_rows_read(groups: Sequence[Sequence[int]], num_held: int, num_known: int) -> int:
    """Count the rows of a block that are read, again and again where not all are held at once."""
    sizes = [len(group) for group in groups]
    if num_known == sum(sizes):
        return 0
    strips = [(lo, hi) for lo, hi in strips_of(len(groups), num_held) if sum(sizes[:hi]) >= num_known]
    return sum(sum(sizes[:hi]) for _, hi in strips)


def num_known_rows(source: Source, rows: Sequence[int], tensors: Sequence[TensorSpec]) -> int:
    """Count the first of the rows whose products the store has."""
    if not isinstance(source, TrajectoryStore) or source.record.gram is None:
        return 0
    record = source.record.gram
    if source.is_stale(record):
        return 0
    steps, names = [source.steps[row] for row in rows], {t.name for t in tensors}
    if set(steps) <= set(record.steps) and names <= set(record.tensors):
        return len(rows)
    is_extended = tuple(steps[: len(record.steps)]) == record.steps and names == set(record.tensors)
    return len(record.steps) if is_extended else 0


def gram(
    source: Source,
    *,
    steps: str | None = None,
    segment: int | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    scheduler: str | None = None,
    processes: bool = False,
    keep: bool = True,
    progress: Progress = NO_PROGRESS,
) -> GramMatrices:
    """Compute the Gram matrix of every tensor's movement: ⟨w_t − w_1, w_u − w_1⟩ for all pairs of steps.

    Of a store over all steps and tensors they are kept under ``gram``.  What is there is used: nothing is read
    where it has all that is asked for, and after steps were appended only products with these are computed.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
    steps : str, optional
        Window of steps, see `ckptlin.selection.select_rows`; the first is what moves are relative to.
    segment : int or str, optional
        One of the source's segments instead: its number, from 1 on, or ``last``.
    include, exclude : sequence of str
        Patterns of tensor names, see `ckptlin.naming.matches`.
    memory_bytes, num_workers : int, optional
    scheduler : str, optional
    processes : bool
        Where blocks are multiplied, see `ckptlin.execution.open_executor`.
    keep : bool
        Keep the matrices in the store; otherwise it is only read, and may be read-only.

    Returns
    -------
    GramMatrices
        ``rounding`` is over all steps of what is kept, also where a window of it was asked for.

    Raises
    ------
    InputError
        If there are fewer than two steps.
    SelectionError
        If a step, a pattern or a tensor does not exist.
    NonFiniteError
        If a weight is NaN or infinite; names tensor, step and count.
    CorruptChunkError, StoreLockedError, MemoryBudgetError, DiskFullError

    Notes
    -----
    Products are summed in float32 over 256 parameters and in float64 across them; the result does not depend on
    workers, memory, chunks of steps or the order of the blocks, not in the last bit.
    """
    make_plan = partial(
        plan_gram,
        steps=steps,
        segment=segment,
        include=include,
        exclude=exclude,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
        keep=keep,
    )
    plan = make_plan(source)
    if not plan.is_kept:
        return _run_on(plan, num_workers, scheduler, processes, progress)
    with StoreWriter(source.location, fresh=False) as writer:
        # The store may have changed since it was opened, and with it the rows of its steps.
        store = TrajectoryStore(source.location)
        plan = make_plan(store)
        grams = _run_on(plan, num_workers, scheduler, processes, progress)
        if plan.is_kept:
            record = replace(
                store.record,
                commit=store.record.commit + 1,
                gram=gram_record(store, tuple(t.name for t in plan.tensors)),
            )
            stage_gram(writer, record, grams)
            writer.commit_gram(record)
    return grams


def gram_record(store: TrajectoryStore, tensors: tuple[str, ...]) -> GramRecord:
    """Describe matrices of all steps of a store."""
    return GramRecord(
        id=secrets.token_hex(8),
        steps=store.steps,
        fingerprints=tuple(checkpoint.fingerprint for checkpoint in store.checkpoints),
        commit=store.record.commit,
        created_by=f"ckptlin {__version__}",
        tensors=tensors,
        sample_size=gram_sample_size(len(store.steps), len(tensors)),
    )


def stage_gram(writer: StoreWriter, record: StoreRecord, grams: GramMatrices) -> None:
    """Write the arrays of the matrices to where they wait for a commit."""
    arrays: list[tuple[str, np.ndarray[Any, Any], BloscCompressor]] = []
    rounding = np.array(list(grams.rounding.values()))
    arrays += _cut("rounding", rounding, table_chunk(len(rounding)), BLOB_COMPRESSOR)
    for name, matrix in grams.matrices.items():
        arrays += _cut(f"matrices/{encode_name(name)}", matrix, len(grams.steps), BLOB_COMPRESSOR)
    for dtype, names in sampled_together(record).items():
        samples = np.concatenate([grams.samples[name].view(dtype.bits) for name in names], axis=1)
        arrays += _cut(f"samples/{dtype.zarr}", samples, min(samples.shape[1], SAMPLE_CHUNK), MAP_COMPRESSOR)
    for key, array, compressor in arrays:
        writer.files.write_behind(key, encode_plain(array, compressor))


def _cut(
    path: str, array: np.ndarray[Any, Any], chunk: int, compressor: BloscCompressor
) -> list[tuple[str, np.ndarray[Any, Any], BloscCompressor]]:
    """Cut an array along its last axis into chunks, the last filled up with zeros."""
    pieces = []
    for index, lo in enumerate(range(0, array.shape[-1], chunk)):
        padded = np.zeros((*array.shape[:-1], chunk), array.dtype)
        padded[..., : array.shape[-1] - lo] = array[..., lo : lo + chunk]
        key = chunk_key(f"{STAGED_GRAM}/{path}", (*[0] * (array.ndim - 1), index))
        pieces.append((key, padded, compressor))
    return pieces


def read_gram(store: TrajectoryStore) -> GramMatrices:
    """Read the Gram matrices that a store keeps; of fewer steps than it has if some were appended since.

    Raises
    ------
    SelectionError, StaleFitError
        If there are none, or checkpoints that they were computed from have been replaced.
    CorruptChunkError
        If a chunk of them is missing or damaged.
    """
    record = store.gram_record()
    num_steps, num_tensors = len(record.steps), len(record.tensors)
    rounding = store.read_gram("rounding", (num_tensors,), np.float64, table_chunk(num_tensors))
    paths = [f"matrices/{encode_name(name)}" for name in record.tensors]
    shape = (num_steps, num_steps)
    matrices = store.files.map(lambda path: store.read_gram(path, shape, np.float64, num_steps), paths)
    samples: dict[str, np.ndarray[Any, Any]] = {}
    for dtype, names in sampled_together(store.record).items():
        counts = [record.num_sampled(store.tensors[name]) for name in names]
        together = store.read_gram(
            f"samples/{dtype.zarr}", (num_steps, sum(counts)), dtype.numpy, min(sum(counts), SAMPLE_CHUNK)
        )
        samples |= zip(names, np.split(together, np.cumsum(counts)[:-1], axis=1), strict=True)
    return GramMatrices(
        steps=record.steps,
        matrices=dict(zip(record.tensors, matrices, strict=True)),
        num_params={name: store.tensors[name].num_params for name in record.tensors},
        rounding=dict(zip(record.tensors, rounding.tolist(), strict=True)),
        samples={name: samples[name] for name in record.tensors},
    )


def _known(plan: GramPlan) -> GramMatrices | None:
    """Return what the store has of the matrices that are planned."""
    if not plan.num_known or not isinstance(plan.source, TrajectoryStore):
        return None
    found = read_gram(plan.source)
    names = [t.name for t in plan.tensors]
    chosen = replace(
        found,
        matrices={name: found.matrices[name] for name in names},
        num_params={name: found.num_params[name] for name in names},
        rounding={name: found.rounding[name] for name in names},
        samples={name: found.samples[name] for name in names},
    )
    rows = [found.steps.index(step) for step in plan.steps if step in found.steps]
    return chosen if rows == list(range(len(found.steps))) else chosen.window(rows)


def _run_on(
    plan: GramPlan, num_workers: int | None, scheduler: str | None, processes: bool, progress: Progress
) -> GramMatrices:
    known = _known(plan)
    if known is not None and plan.num_known == len(plan.rows):
        return known
    with open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes) as executor:
        return _run(plan, known, executor, progress)


def _run(plan: GramPlan, known: GramMatrices | None, executor: Executor, progress: Progress) -> GramMatrices:
    work = BlockGram(
        source=plan.source,
        rows=plan.rows,
        num_known=plan.num_known,
        num_held=plan.num_held,
        sample_size=gram_sample_size(len(plan.rows), len(plan.tensors)),
    )
    sums = GramSums(plan.source, plan.tensors, plan.rows, known)
    blocks = [block for t in plan.tensors for block in plan.source.blocks(t.name)]
    num_read = _num_rows_read(row_groups(plan.source, plan.rows), plan.num_held, plan.num_known)
    with progress.phase("gram", plan.bytes_in) as advance:

        def collect(batch: tuple[Block, ...], figures: list[GramFigures]) -> None:
            for block, of_block in zip(batch, figures, strict=True):
                sums.add(block, of_block)
                advance(block.num_params * plan.source.tensors[block.tensor].dtype.itemsize * num_read)

        executor.run(work, batches(blocks), collect, ahead=work.prefetch)
    return sums.result()
