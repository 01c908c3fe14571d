"""The regression of every parameter on the training step, out of core."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.block_fit import BlockFigures, BlockFitter
from ckptlin.block_gram import BlockGram
from ckptlin.checkpoints import RunTrajectories
from ckptlin.dtypes import TensorDType, from_zarr
from ckptlin.errors import InputError, MemoryBudgetError
from ckptlin.execution import Executor, Threads, available_workers, batches, open_executor
from ckptlin.gram import (
    gram_block_bytes,
    gram_bytes,
    gram_record,
    gram_sample_size,
    num_known_rows,
    read_gram,
    stage_gram,
)
from ckptlin.gram_matrices import GramMatrices
from ckptlin.gram_sums import GramSums
from ckptlin.kernels.regression import COUNT, GROUP_ROWS, BlockRegression
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.null import simulate_null
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.segments import Jump, jumps_among, segments_to_dict, warn_of_jumps
from ckptlin.selection import describe_window, fitted_tensors, row_groups, select_window
from ckptlin.store.chunk_codec import encode_plain
from ckptlin.store.metadata import BLOB_COMPRESSOR, SUMMARY_TABLES, FitRecord, table_chunk
from ckptlin.store.store import TrajectoryStore, chunk_key
from ckptlin.store.writer import StoreWriter
from ckptlin.summary import NUM_BINS, FitSummary, Tally
from ckptlin.trajectory import Block, TensorSpec

__all__ = ["DEFAULT_MAPS", "FitPlan", "FitResult", "fit", "parse_maps", "plan_fit", "read_summary"]

MAP_NAMES = ("r2", "slope", "intercept")
# Both are kept although writing them costs half as much time again (docs/fit.md has the figures), because what
# comes after a fit asks for them: which weights are linear, and how fast they move.  16 bits halve that cost;
# float16 keeps R² to 2.5e-4, bfloat16 a slope to 0.4 %.
DEFAULT_MAPS: Mapping[str, str] = {"r2": "float16", "slope": "bfloat16"}
_MAP_DTYPES = ("float16", "bfloat16", "float32", "float64")
# What is kept of trajectories for the null, all tensors together.
_SAMPLE_BYTES = 32 << 20
_MAX_SAMPLE, _MIN_SAMPLE = 2048, 8
_MIN_PATHS = 64
# Steps times walks of one tensor's null, and how many arrays of that size it takes at a time.
_MAX_WALK_VALUES, _NUM_WALK_ARRAYS = 1 << 19, 9
# Metadata of one array, as Python objects and as JSON (measured: 10.5 KiB).
_NODE_BYTES = 11 << 10


@dataclass(frozen=True)
class FitPlan:
    """What a fit would do.

    Attributes
    ----------
    rows : tuple of int
        Selected rows of the source's steps.
    tensors : tuple of TensorSpec
    maps : dict of str to str
        Maps to keep, and their zarr data types; empty without a store.
    gram : bool
        Whether the Gram matrices are computed in the same pass.
    bytes_in, bytes_out : int
        Raw bytes of the trajectories to read, and of the maps to write.
    memory : MemoryPlan
    warnings : tuple of str
        What a user should know of the steps.
    """

    source: TrajectoryStore | RunTrajectories
    name: str
    rows: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    maps: Mapping[str, str]
    gram: bool
    bytes_in: int
    bytes_out: int
    memory: MemoryPlan
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Selected steps."""
        return tuple(self.source.steps[row] for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "source": self.source.location,
            "name": self.name,
            "steps": list(self.steps),
            **segments_to_dict(self.steps, self.source.jumps),
            "tensors": len(self.tensors),
            "params": sum(t.num_params for t in self.tensors),
            "maps": dict(self.maps),
            "gram": self.gram,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "workers": self.memory.num_workers,
            "peak_memory_bytes": self.memory.peak_bytes,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class FitResult:
    """A fit's figures.

    Attributes
    ----------
    name : str
    source : str
        Store or run that was fitted.
    summary : FitSummary
    jumps : tuple of Jump
        Those that the fitted steps cross.
    maps : dict of str to str
        Maps kept in the store.
    keeps_gram : bool
        Whether the store has the Gram matrices of these steps and tensors.
    """

    name: str
    source: str
    summary: FitSummary = field(repr=False)
    jumps: tuple[Jump, ...]
    maps: Mapping[str, str]
    keeps_gram: bool
    bytes_in: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "name": self.name,
            "source": self.source,
            "maps": dict(self.maps),
            "gram": self.keeps_gram,
            "bytes_in": self.bytes_in,
            "elapsed_s": self.elapsed_s,
            **self.summary.to_dict(),
            **segments_to_dict(self.summary.steps, self.jumps),
        }


def parse_maps(text: str) -> dict[str, str]:
    """Read which maps to keep: ``r2,slope``, ``r2:float32,intercept``, ``all`` or ``none``.

    Without a type R² is float16, the slope bfloat16 and the intercept float32 (16 bits would not tell it from
    the weight).

    Raises
    ------
    InputError
        If a map or a type does not exist.

    Examples
    --------
    >>> parse_maps("r2,slope:float32"), parse_maps("none")
    ({'r2': 'float16', 'slope': 'float32'}, {})
    """
    default = {**DEFAULT_MAPS, "intercept": "float32"}
    if text == "none":
        return {}
    if text == "all":
        return default
    maps = {}
    for part in text.split(","):
        name, _, dtype = part.strip().partition(":")
        if name not in MAP_NAMES or (dtype and dtype not in _MAP_DTYPES):
            raise InputError(
                f"--maps {part!r} is not known; give all, none, or some of {', '.join(MAP_NAMES)}, each with "
                ":float16, :bfloat16, :float32 or :float64 behind it if you like"
            )
        maps[name] = dtype or default[name]
    return maps


def plan_fit(
    source: TrajectoryStore | RunTrajectories,
    *,
    name: str = "default",
    steps: str | None = None,
    segment: int | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    maps: Mapping[str, str] | None = None,
    gram: bool | None = None,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
) -> FitPlan:
    """Work out what `fit` would do; same parameters and errors."""
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    if not name:
        raise InputError("--name must not be empty")
    rows = select_window(source, steps, segment)
    if len(rows) < 2:
        window = describe_window(steps, segment)
        raise InputError(
            f"a fit needs at least 2 checkpoints, and {source.location} "
            + (f"has only one in {window}" if window else f"has only step {source.steps[0]}")
        )
    tensors = tuple(fitted_tensors(source, include, exclude))
    if maps is None:
        maps = DEFAULT_MAPS if isinstance(source, TrajectoryStore) else {}
    elif maps and not isinstance(source, TrajectoryStore):
        raise InputError(
            f"maps are kept in a store, and {source.location} is a run; ingest it, or give --maps none"
        )
    sample_size = _sample_size(len(rows), len(tensors))
    walk_bytes = _NUM_WALK_ARRAYS * 8 * len(rows) * max(sample_size, _MIN_PATHS)
    sample_bytes = sum(_sample_bytes(source, t, len(rows), sample_size) for t in tensors)

    def within(has_gram: bool) -> MemoryPlan:
        return MemoryPlan.within(
            default_budget() if memory_bytes is None else memory_bytes,
            "fit",
            max(walk_bytes, *(_block_bytes(source, t, rows, maps, has_gram) for t in tensors)),
            num_workers or available_workers(),
            extra_bytes=sample_bytes
            + len(tensors) * Tally.NUM_BYTES
            + _metadata_bytes(source, tensors, maps)
            + (source.files.behind_bytes if maps and isinstance(source, TrajectoryStore) else 0)
            + (gram_bytes(source, tensors, len(rows), is_kept=True) if has_gram else 0),
        )

    has_gram = _has_gram(source, rows, tensors, gram)
    if gram and has_gram:
        memory = within(True)
    else:
        memory = within(False)
        try:
            beside = within(True) if has_gram else memory
        except MemoryBudgetError:
            beside = None
        # All rows of a block at once take more memory: not at the cost of more than half of the workers.
        has_gram = has_gram and beside is not None and 2 * beside.num_workers >= memory.num_workers
        memory = beside if has_gram and beside is not None else memory
    return FitPlan(
        source=source,
        name=name,
        rows=rows,
        tensors=tensors,
        maps=maps,
        gram=has_gram,
        bytes_in=sum(t.num_bytes for t in tensors) * len(rows),
        bytes_out=sum(t.num_params * from_zarr(dtype).itemsize for t in tensors for dtype in maps.values()),
        memory=memory,
        warnings=warn_of_jumps(
            [source.steps[row] for row in rows],
            source.jumps,
            "R² and slopes take the extrapolation for training",
        ),
    )


def _has_gram(
    source: TrajectoryStore | RunTrajectories,
    rows: Sequence[int],
    tensors: Sequence[TensorSpec],
    gram: bool | None,
) -> bool:
    """Tell whether a fit is to compute Gram matrices: a store keeps those of all steps and tensors."""
    is_whole = (
        isinstance(source, TrajectoryStore)
        and len(rows) == len(source.steps)
        and len(tensors) == len(fitted_tensors(source))
    )
    if gram and not is_whole:
        raise InputError(
            "--gram keeps the matrices of all steps and tensors of a store; leave out --steps, --segment, "
            f"--include and --exclude, or run `ckptlin gram` for a part of {source.location}"
        )
    return gram is not False and is_whole and num_known_rows(source, rows, tensors) < len(rows)


def _block_bytes(
    source: TrajectoryStore | RunTrajectories,
    spec: TensorSpec,
    rows: Sequence[int],
    maps: Mapping[str, str],
    has_gram: bool,
) -> int:
    """Bytes that one block of a tensor takes while it is fitted."""
    num_params = max((block.num_params for block in source.blocks(spec.name)), default=0)
    groups = row_groups(source, rows)
    in_store = isinstance(source, TrajectoryStore)
    group = source.record.chunk_steps if isinstance(source, TrajectoryStore) else max(map(len, groups))
    # A chunk of a store lies in memory as it was read or cut, and as it was decoded.
    block = group * spec.dtype.itemsize * (2 if in_store else 1)
    is_whole = len(groups) == 1 and len(rows) <= GROUP_ROWS
    state = 0 if is_whole else BlockRegression.state_bytes(spec.dtype)
    # All maps as they were computed; one of them as it is written, padded and compressed.
    values = len(maps) * max(4, spec.dtype.itemsize)
    written = 2 * max((from_zarr(dtype).itemsize for dtype in maps.values()), default=0)
    beside = 0
    if has_gram:
        beside = gram_block_bytes(num_params, len(rows))
        # Rows of several chunks are put together.
        block += 0 if len(groups) == 1 else len(rows) * spec.dtype.itemsize
    return num_params * (block + state + values + written) + beside


def _metadata_bytes(
    source: TrajectoryStore | RunTrajectories, tensors: Sequence[TensorSpec], maps: Mapping[str, str]
) -> int:
    """Bytes that a store's root document takes while it is put together."""
    if not isinstance(source, TrajectoryStore):
        return 0
    of_fits = sum(len(fit.tensors) * len(fit.maps) for fit in source.record.fits.values())
    return _NODE_BYTES * (len(source.tensors) + of_fits + len(tensors) * len(maps))


def _sample_size(num_rows: int, num_tensors: int) -> int:
    """Choose how many trajectories of each tensor are kept for the null."""
    size = min(_SAMPLE_BYTES // (2 * num_rows * num_tensors), _MAX_WALK_VALUES // num_rows, _MAX_SAMPLE)
    return max(size, _MIN_SAMPLE)


def _sample_bytes(
    source: TrajectoryStore | RunTrajectories, spec: TensorSpec, num_rows: int, sample_size: int
) -> int:
    # Every block rounds its share up.
    size = min(sample_size + len(source.blocks(spec.name)), spec.num_params)
    return size * num_rows * spec.dtype.itemsize


def fit(
    source: TrajectoryStore | RunTrajectories,
    *,
    name: str = "default",
    steps: str | None = None,
    segment: int | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    maps: Mapping[str, str] | None = None,
    gram: bool | None = None,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    scheduler: str | None = None,
    processes: bool = False,
    seed: int = 0,
    keep: bool = True,
    progress: Progress = NO_PROGRESS,
) -> FitResult:
    """Fit every parameter of a store or a run by a straight line in the training step.

    Parameters
    ----------
    source : TrajectoryStore or RunTrajectories
        In a store the summary and the maps are kept, under ``fits/<name>``; a fit of that name is replaced.
    name : str
    steps : str, optional
        Window of steps, see `ckptlin.selection.select_rows`; default all.  Steps that cross a jump are fitted
        together, and ``progress`` is told so.
    segment : int or str, optional
        One of the source's segments instead: its number, from 1 on, or ``last``.
    include, exclude : sequence of str
        Patterns of tensor names, see `ckptlin.naming.matches`.
    maps : mapping of str to str, optional
        Which per-parameter maps to keep, and as which zarr data type; default `DEFAULT_MAPS` in a store.
    gram : bool, optional
        Keep the Gram matrices in the store too (`ckptlin.gram`), out of the same pass.  Default: where all
        steps and tensors are fitted, and memory holds all rows of a block at once for half of the workers.
    memory_bytes, num_workers : int, optional
    scheduler : str, optional
    processes : bool
        Where blocks are fitted, see `ckptlin.execution.open_executor`.
    seed : int
        Of the random walks of the null.
    keep : bool
        Keep summary and maps in the store; otherwise the store is only read, and may be read-only.

    Raises
    ------
    InputError
        If there are fewer than two steps.
    SelectionError
        If a step, a pattern or a tensor does not exist.
    NonFiniteError
        If a weight is NaN or infinite; names tensor, step and count.
    CorruptChunkError, StoreLockedError, MemoryBudgetError, DiskFullError
    """
    started = time.perf_counter()
    if gram and not keep:
        raise InputError("--gram keeps the Gram matrices in the store, and --no-keep keeps nothing; give one")
    make_plan = partial(
        plan_fit,
        name=name,
        steps=steps,
        segment=segment,
        include=include,
        exclude=exclude,
        maps=maps if keep else {},
        gram=gram if keep else False,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
    )
    plan = make_plan(source)
    if isinstance(source, TrajectoryStore) and keep:
        with StoreWriter(source.location, fresh=False) as writer:
            # The store may have changed since it was opened, and with it the rows of its steps.
            plan = make_plan(TrajectoryStore(source.location))
            _tell(plan, progress)
            with open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes) as executor:
                summary, grams = _run(plan, writer, seed, executor, progress)
            _write_tables(writer, writer.staged_fit(name), summary)
            record = _record_with_fit(plan)
            if grams is not None:
                stage_gram(writer, record, grams)
            writer.commit_fit(record, name, gram=grams is not None)
    else:
        _tell(plan, progress)
        with open_executor(plan.memory, num_workers, scheduler=scheduler, processes=processes) as executor:
            summary, _ = _run(plan, None, seed, executor, progress)
    return FitResult(
        name=name,
        source=source.location,
        summary=summary,
        jumps=jumps_among(plan.steps, plan.source.jumps),
        maps=plan.maps,
        keeps_gram=plan.gram or num_known_rows(plan.source, plan.rows, plan.tensors) == len(plan.rows),
        bytes_in=plan.bytes_in,
        elapsed_s=time.perf_counter() - started,
    )


def _tell(plan: FitPlan, progress: Progress) -> None:
    for warning in plan.warnings:
        progress.note(warning)


def read_summary(store: TrajectoryStore, name: str = "default") -> FitSummary:
    """Read the figures of a fit from a store.

    Raises
    ------
    SelectionError, StaleFitError
        If there is no such fit, or its checkpoints have been replaced.
    """
    record = store.fit_record(name)
    num = len(record.tensors)
    tables = {
        table: store.read_table(name, table, (num, *(size for _, size in dims)))
        for table, dims in SUMMARY_TABLES.items()
    }
    tallies = tuple(Tally(**{table: tables[table][i] for table in tables}) for i in range(num))
    return FitSummary(record.steps, record.tensors, tallies)


def _run(
    plan: FitPlan, writer: StoreWriter | None, seed: int, executor: Executor, progress: Progress
) -> tuple[FitSummary, GramMatrices | None]:
    gram_sums, block_gram = _gram_of(plan)
    fitter = BlockFitter(
        source=plan.source,
        rows=plan.rows,
        maps=plan.maps,
        files=None if writer is None else writer.files,
        prefix="" if writer is None else writer.staged_fit(plan.name),
        sample_size=_sample_size(len(plan.rows), len(plan.tensors)),
        gram=block_gram,
    )
    tallies = {t.name: Tally.zero() for t in plan.tensors}
    # By block, so that nothing depends on the order in which blocks end.
    sums: dict[Block, np.ndarray[Any, Any]] = {}
    samples: dict[Block, np.ndarray[Any, Any]] = {}
    blocks = [block for t in plan.tensors for block in plan.source.blocks(t.name)]
    with progress.phase("fit", plan.bytes_in) as advance:

        def collect(batch: tuple[Block, ...], figures: list[BlockFigures]) -> None:
            for block, of_block in zip(batch, figures, strict=True):
                # Counts are whole numbers: exact in any order.
                tallies[block.tensor].counts += of_block.counts
                tallies[block.tensor].histogram += of_block.histogram
                sums[block] = of_block.sums
                samples[block] = of_block.sample
                if gram_sums is not None and of_block.gram is not None:
                    gram_sums.add(block, of_block.gram)
                if writer is not None and executor.is_remote:
                    for key in fitter.map_keys(block).values():
                        writer.files.note(key)
                advance(block.num_params * plan.source.tensors[block.tensor].dtype.itemsize * len(plan.rows))

        executor.run(fitter, batches(blocks), collect, ahead=fitter.prefetch)
    parts: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in tallies}
    for block in sorted(sums, key=lambda b: b.start):
        tallies[block.tensor].sums += sums[block]
        parts[block.tensor].append(samples.pop(block))
    with progress.phase(
        "null", sum(part.nbytes for of_tensor in parts.values() for part in of_tensor)
    ) as advance:

        def walk(spec: TensorSpec) -> int:
            sample = np.concatenate(parts.pop(spec.name), axis=1).view(spec.dtype.numpy)
            _add_null(tallies[spec.name], spec.dtype, sample, plan.steps, seed)
            return sample.nbytes

        # Samples are small and lie here.
        Threads(plan.memory.num_workers).run(walk, plan.tensors, lambda _, num_bytes: advance(num_bytes))
    summary = FitSummary(plan.steps, tuple(tallies), tuple(tallies.values()))
    return summary, None if gram_sums is None else gram_sums.result()


def _gram_of(plan: FitPlan) -> tuple[GramSums | None, BlockGram | None]:
    """Return what multiplies the moves of the blocks that are fitted, and what adds up the products."""
    store = plan.source
    if not plan.gram or not isinstance(store, TrajectoryStore):
        return None, None
    num_known = num_known_rows(store, plan.rows, plan.tensors)
    block_gram = BlockGram(
        source=store,
        rows=plan.rows,
        num_known=num_known,
        num_held=len(plan.rows),
        sample_size=gram_sample_size(len(plan.rows), len(plan.tensors)),
    )
    return GramSums(store, plan.tensors, plan.rows, read_gram(store) if num_known else None), block_gram


def _add_null(
    tally: Tally, dtype: TensorDType, sample: np.ndarray[Any, Any], steps: Sequence[int], seed: int
) -> None:
    """Add what random walks like the sample would show, weighted to stand for all parameters of the tensor."""
    num_paths = max(sample.shape[1], _MIN_PATHS)
    null = simulate_null(sample.astype(np.float64), steps, dtype, num_paths=num_paths, seed=seed)
    weight = tally.counts[COUNT.params] / num_paths
    defined = ~np.isnan(null.r2)
    tally.null_counts[COUNT.params] = tally.counts[COUNT.params]
    tally.null_counts[COUNT.unchanged] = weight * (~null.moved).sum()
    tally.null_counts[COUNT.undefined] = weight * (null.moved & ~defined).sum()
    tally.null_counts[COUNT.paper] = weight * (null.paper & defined).sum()
    for row, (population, above_7, above_9) in enumerate(
        (
            (defined, COUNT.moved_above_7, COUNT.moved_above_9),
            (defined & null.paper, COUNT.paper_above_7, COUNT.paper_above_9),
        )
    ):
        r2 = null.r2[population]
        positions = np.minimum((r2 * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        tally.null_histogram[row] += weight * np.bincount(positions, minlength=NUM_BINS)
        tally.null_counts[above_7] = weight * (r2 > 0.7).sum()
        tally.null_counts[above_9] = weight * (r2 > 0.9).sum()


def _write_tables(writer: StoreWriter, prefix: str, summary: FitSummary) -> None:
    chunk = table_chunk(len(summary.names))
    for table, dims in SUMMARY_TABLES.items():
        for index, lo in enumerate(range(0, len(summary.names), chunk)):
            padded = np.zeros((chunk, *(size for _, size in dims)))
            for row, tally in zip(padded, summary.tallies[lo : lo + chunk], strict=False):
                row[...] = getattr(tally, table)
            key = chunk_key(f"{prefix}/{table}", (index, *[0] * len(dims)))
            writer.files.write(key, encode_plain(padded, BLOB_COMPRESSOR))


def _record_with_fit(plan: FitPlan) -> Any:
    store = plan.source
    assert isinstance(store, TrajectoryStore)  # noqa: S101 (only a store keeps fits)
    fit_record = FitRecord(
        id=secrets.token_hex(8),
        steps=plan.steps,
        fingerprints=tuple(store.checkpoints[row].fingerprint for row in plan.rows),
        commit=store.record.commit,
        created_by=f"ckptlin {__version__}",
        tensors=tuple(t.name for t in plan.tensors),
        maps=dict(plan.maps),
    )
    return replace(
        store.record,
        commit=store.record.commit + 1,
        fits={**store.record.fits, plan.name: fit_record},
        gram=gram_record(store, fit_record.tensors) if plan.gram else store.record.gram,
    )
