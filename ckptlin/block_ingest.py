"""The part of an ingest that runs wherever chunks are written: read rows, encode, write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckptlin.ingest_plan import Row, checksum
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
    rows : sequence of Row
        Every step of the new store.
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
        rows: Sequence[Row],
        store: TrajectoryStore | None,
        chunk_steps: int,
        compressor: Compressor,
        files: StoreFiles,
        note: Callable[[ChunkEntry], None],
    ) -> None:
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
            for row in self._rows_of(item.chunk_row):
                if row.source is not None:
                    row.source.checkpoint.prefetch(item.block.tensor, item.block.start, item.block.num_params)

    def _rows_of(self, chunk_row: int) -> tuple[Row, ...]:
        return self._rows[chunk_row * self._chunk_steps : (chunk_row + 1) * self._chunk_steps]

    def _write(self, item: ChunkItem) -> ChunkEntry:
        rows, block = self._rows_of(item.chunk_row), item.block
        dtype = next(row.source.checkpoint for row in rows if row.source).tensors[block.tensor].dtype
        kept = [(i, row.old_row) for i, row in enumerate(rows) if row.old_row is not None]
        old = None
        if kept and self._store is not None:
            old = self._store.read_block(block, [old_row for _, old_row in kept])
        bits = thread_buffer().array((self._chunk_steps, item.num_params), dtype.bits)
        bits[:, block.num_params :] = 0
        bits[len(rows) :] = 0
        if old is not None:
            bits[[i for i, _ in kept], : block.num_params] = old
        checksums = []
        for i, row in enumerate(rows):
            if row.source is not None:
                part = bits[i, : block.num_params]
                row.source.checkpoint.read_into(block.tensor, block.start, part)
                checksums.append(checksum(part))
        data = encode_chunk(bits, dtype, self._compressor)
        entry = ChunkEntry.of(block_key(block, item.chunk_row), data, checksums)
        note = self._note
        self._files.write_behind(entry.key, data, None if note is None else lambda: note(entry))
        return entry
