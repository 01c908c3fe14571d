"""The part of an ingest that runs wherever chunks are written: read rows, encode, write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckptlin.checkpoints import RunTrajectories
from ckptlin.ingest_plan import checksum
from ckptlin.store.chunk_codec import Compressor, encode_chunk
from ckptlin.store.files import StoreFiles
from ckptlin.store.store import TrajectoryStore, block_key
from ckptlin.store.writer import ChunkEntry
from ckptlin.trajectory import Block, thread_buffer

__all__ = ["BlockIngester", "ChunkItem"]


@dataclass(frozen=True, slots=True)
class ChunkItem:
    """A chunk to write: its row of chunks, its block, and the number of parameters it has with its padding."""

    chunk_row: int
    block: Block
    num_params: int


class BlockIngester:
    """Writes batches of chunks: a small picklable task.

    Parameters
    ----------
    run : RunTrajectories
    rows : sequence of (int or None, int or None)
        For every step of the new store its row in the store that is there, or that in the run.
    store : TrajectoryStore or None
        Where rows that are kept come from.
    chunk_steps : int
    compressor : Compressor
    files : StoreFiles
        Where the chunks go.
    note : callable
        Is told of each chunk as soon as it is durable; not in another process.
    """

    def __init__(
        self,
        *,
        run: RunTrajectories,
        rows: Sequence[tuple[int | None, int | None]],
        store: TrajectoryStore | None,
        chunk_steps: int,
        compressor: Compressor,
        files: StoreFiles,
        note: Callable[[ChunkEntry], None],
    ) -> None:
        self._run = run
        self._rows = tuple(rows)
        self._store = store
        self._chunk_steps = chunk_steps
        self._compressor = compressor
        self._files = files
        self._note: Callable[[ChunkEntry], None] | None = note

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_note": None}

    def __call__(self, batch: Sequence[ChunkItem]) -> list[ChunkEntry]:
        """Write the chunks of a batch; return what the journal keeps of each."""
        return [self._write(item) for item in batch]

    def prefetch(self, batch: Sequence[ChunkItem]) -> None:
        """Tell the system that a batch will soon be read."""
        for item in batch:
            rows = self._rows_of(item.chunk_row)
            self._run.prefetch(item.block, [run_row for _, run_row in rows if run_row is not None])

    def _rows_of(self, chunk_row: int) -> tuple[tuple[int | None, int | None], ...]:
        return self._rows[chunk_row * self._chunk_steps : (chunk_row + 1) * self._chunk_steps]

    def _write(self, item: ChunkItem) -> ChunkEntry:
        rows, block = self._rows_of(item.chunk_row), item.block
        dtype = self._run.tensors[block.tensor].dtype
        kept = [(i, old_row) for i, (old_row, _) in enumerate(rows) if old_row is not None]
        old = None
        if kept and self._store is not None:
            old = self._store.read_block(block, [old_row for _, old_row in kept])
        bits = thread_buffer().array((self._chunk_steps, item.num_params), dtype.bits)
        bits[:, block.num_params :] = 0
        bits[len(rows) :] = 0
        if old is not None:
            bits[[i for i, _ in kept], : block.num_params] = old
        checksums = []
        for i, (_, run_row) in enumerate(rows):
            if run_row is not None:
                part = bits[i, : block.num_params]
                self._run.checkpoints[run_row].checkpoint.read_into(block.tensor, block.start, part)
                checksums.append(checksum(part))
        data = encode_chunk(bits, dtype, self._compressor)
        entry = ChunkEntry.of(block_key(block, item.chunk_row), data, checksums)
        note = self._note
        self._files.write_behind(entry.key, data, None if note is None else lambda: note(entry))
        return entry
