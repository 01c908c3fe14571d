"""Running many independent tasks as one Dask graph."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ckptlin.trajectory import Block

__all__ = ["available_workers", "batches", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")
# Blocks of small tensors share a task, so that a model of thousands of vectors does not pay for each.
_BATCH_PARAMS = 1 << 20
# Dask's time for a graph of independent tasks grows with their number squared: 10,000 empty ones took 29 s
# in one graph.
_GRAPH_TASKS = 512


def available_workers() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(blocks: Iterable[Block], num_params: int = _BATCH_PARAMS) -> list[tuple[Block, ...]]:
    """Group consecutive blocks to about ``num_params`` parameters; no group is empty."""
    groups: list[list[Block]] = []
    size = num_params
    for block in blocks:
        if size + block.num_params > num_params:
            groups.append([])
            size = 0
        groups[-1].append(block)
        size += block.num_params
    return [tuple(group) for group in groups]


def run_tasks(function: Callable[[T], R], items: Sequence[T], *, num_workers: int) -> list[R]:
    """Apply a function to every item, ``num_workers`` at a time in threads; results in the order of items.

    The first error ends the run: it is raised after the tasks in flight have come to their end, so that
    nothing is still writing when the caller cleans up.
    """
    import dask

    delayed = dask.delayed(function, pure=False, traverse=False)
    results: list[R] = []
    with ThreadPoolExecutor(num_workers, thread_name_prefix="ckptlin") as pool:
        options = {"scheduler": "threads", "pool": pool, "num_workers": num_workers}
        for lo in range(0, len(items), _GRAPH_TASKS):
            part = items[lo : lo + _GRAPH_TASKS]
            tasks = [delayed(item, dask_key_name=f"task-{lo + i}") for i, item in enumerate(part)]
            results += dask.compute(*tasks, traverse=False, **options)
    return results
