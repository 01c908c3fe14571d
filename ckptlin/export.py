"""Give an ingested checkpoint back, bit for bit."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.checkpoints import CheckpointWriter, WeightFilePlan
from ckptlin.errors import InputError
from ckptlin.execution import Threads, available_workers, batches
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.store.store import TrajectoryStore
from ckptlin.template import template_of
from ckptlin.trajectory import Block

__all__ = ["ExportResult", "export"]


@dataclass(frozen=True)
class ExportResult:
    """An exported checkpoint."""

    out_dir: Path
    step: int
    num_bytes: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "out": str(self.out_dir),
            "step": self.step,
            "bytes": self.num_bytes,
            "elapsed_s": self.elapsed_s,
        }


def export(
    store: TrajectoryStore,
    step: int,
    out_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> ExportResult:
    """Write an ingested checkpoint: the same files of weights, byte for byte, with configuration and tokenizer.

    Raises
    ------
    SelectionError
        If the step is not in the store.
    InputError, OutputExistsError, DiskFullError, CorruptChunkError, MemoryBudgetError
    """
    started = time.perf_counter()
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    row = store.row_of(step)
    template = template_of(store, row)
    files = [WeightFilePlan(name, header) for name, header in template.headers.items()]
    widest = max((store.chunk_params(t.name) * t.dtype.itemsize for t in store.tensors.values()), default=1)
    memory = MemoryPlan.within(
        default_budget() if memory_bytes is None else memory_bytes,
        "export",
        2 * store.record.chunk_steps * widest,
        num_workers or available_workers(),
    )
    with CheckpointWriter(Path(out_dir), files, overwrite=overwrite) as writer:
        blocks = [block for name in store.tensors for block in store.blocks(name)]
        with progress.phase("export", writer.num_bytes) as advance:

            def work(batch: tuple[Block, ...]) -> None:
                for block in batch:
                    values = np.ascontiguousarray(store.read_block(block, [row])[0])
                    writer.write(block.tensor, block.start, values)
                    advance(values.nbytes)

            Threads(memory.num_workers).run(work, batches(blocks))
        for name, data in template.sidecars.items():
            writer.add_file(name, data)
        writer.commit()
        num_bytes = writer.num_bytes
    return ExportResult(Path(out_dir), step, num_bytes, time.perf_counter() - started)
