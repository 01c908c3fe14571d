"""Running many independent tasks: in threads here, or in the processes of a Dask cluster.

A task is a small picklable callable applied to an item (names and slices); it reads and writes its own blocks,
and returns figures.  Nothing else travels.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from ckptlin.errors import InputError
from ckptlin.interrupts import OneInterrupt
from ckptlin.memory import MemoryPlan
from ckptlin.trajectory import Block

__all__ = ["Cluster", "Executor", "Threads", "available_workers", "batches", "bundle_size", "open_executor"]

T = TypeVar("T")
R = TypeVar("R")
# Blocks of small tensors share a task, so that a model of thousands of vectors does not pay for each.
_BATCH_PARAMS = 1 << 20
# Dask's time for a graph of independent tasks grows with their number squared: 10,000 empty ones took 29 s
# in one graph.
_GRAPH_TASKS = 512
# Tasks for each thread of a cluster that are on their way: enough that none waits for the next.
_IN_FLIGHT = 3
_PATIENCE_S = 60
_TASKS_A_THREAD, _MAX_BUNDLE = 16, 8


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


def _discard(item: Any, result: Any) -> None:
    """Take a result that nobody asks for."""


class Executor(Protocol):
    """Where tasks run.

    Attributes
    ----------
    is_remote : bool
        Whether that is other processes.
    """

    is_remote: bool

    def run(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        collect: Callable[[T, R], None] = _discard,
        *,
        ahead: Callable[[T], None] | None = None,
    ) -> None:
        """Apply ``work`` to every item, and give each result to ``collect``: in any order, one at a time.

        The first error ends the run: it is raised after the tasks in flight have come to their end, so that
        nothing is still writing when the caller cleans up.  ``ahead`` is told of items that will soon be worked
        on, for data to be read ahead.
        """
        ...


class Threads:
    """Threads of this process; numba, blosc and reads release the interpreter's lock."""

    is_remote = False

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def run(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        collect: Callable[[T, R], None] = _discard,
        *,
        ahead: Callable[[T], None] | None = None,
    ) -> None:
        """See `Executor.run`."""
        # The graph goes to this scheduler directly: `dask.compute` imports distributed first, where that is
        # installed, to ask it for a client, which takes as long as everything else that is imported.
        from dask.threaded import get

        reach = 2 * self.num_workers
        lock = threading.Lock()

        def task(number: int) -> None:
            if ahead is not None and number + reach < len(items):
                ahead(items[number + reach])
            result = work(items[number])
            with lock:
                collect(items[number], result)

        # A Ctrl-C while the pool is waited for would leave its threads writing to what is cleared away.
        with (
            OneInterrupt() as interrupts,
            ThreadPoolExecutor(self.num_workers, thread_name_prefix="ckptlin") as pool,
        ):
            for lo in range(0, len(items), _GRAPH_TASKS):
                part = range(lo, min(lo + _GRAPH_TASKS, len(items)))
                # Dask starts leaves with the last key in alphabetical order: read as the items lie on the disk.
                graph = {f"task-{len(items) - i:09d}": (task, i) for i in part}
                try:
                    get(graph, list(graph), pool=pool, num_workers=self.num_workers)
                except BaseException:
                    interrupts.hold()
                    raise


class Cluster:
    """The workers of a ``dask.distributed`` cluster.

    A task of a worker that is lost runs again on another one.

    Parameters
    ----------
    client : distributed.Client
    """

    is_remote = True

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        collect: Callable[[T, R], None] = _discard,
        *,
        ahead: Callable[[T], None] | None = None,
    ) -> None:
        """See `Executor.run`; nothing is read ahead, as nobody knows which worker an item will go to."""
        from distributed import as_completed, wait

        num_threads = max(sum(self._client.nthreads().values()), 1)
        size = bundle_size(len(items), num_threads)
        waiting = deque((lo, items[lo : lo + size]) for lo in range(0, len(items), size))
        # One copy for each worker; those that come later take it from another.
        shared = self._client.scatter(work, broadcast=True, hash=False)
        bundle_of: dict[Any, Sequence[T]] = {}
        completed = as_completed(loop=self._client.loop)

        def submit() -> None:
            lo, bundle = waiting.popleft()
            # Earlier items first, on whichever worker is free.
            future = self._client.submit(_call, shared, bundle, pure=False, priority=-lo)
            bundle_of[future] = bundle
            completed.add(future)

        try:
            for _ in range(min(len(waiting), _IN_FLIGHT * num_threads)):
                submit()
            if not bundle_of:
                return
            for future in completed:
                results = future.result()
                bundle = bundle_of.pop(future)
                if waiting:
                    submit()
                for item, result in zip(bundle, results, strict=True):
                    collect(item, result)
        finally:
            # Cancelled tasks would go on unseen; there are few.
            with self._client.as_current(), suppress(TimeoutError, CancelledError):
                wait(list(bundle_of), timeout=_PATIENCE_S)


def bundle_size(num_items: int, num_threads: int) -> int:
    """Choose how many items go to a cluster as one task: Dask's scheduler takes milliseconds for each.

    Few enough that every thread has some sixteen tasks, and a lost worker loses little.

    Examples
    --------
    >>> bundle_size(100, 2), bundle_size(31_000, 8), bundle_size(31_000, 512)
    (3, 8, 3)
    """
    return min(max(num_items // (_TASKS_A_THREAD * num_threads), 1), _MAX_BUNDLE)


def _call(work: Callable[[T], R], bundle: Sequence[T]) -> list[R]:
    return [work(item) for item in bundle]


@contextmanager
def open_executor(
    memory: MemoryPlan, num_workers: int | None, *, scheduler: str | None = None, processes: bool = False
) -> Iterator[Executor]:
    """Open what an operation runs on, and close it after.

    Parameters
    ----------
    memory : MemoryPlan
        Says how many threads the budget allows.  Processes have a budget each.
    num_workers : int or None
        Processes to start; default one for each processor.
    scheduler : str, optional
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``.
    processes : bool
        Start a local cluster of processes instead of threads.

    Raises
    ------
    InputError
        If nothing answers at the address, ``distributed`` is not installed, or both are asked for.
    """
    if scheduler is None and not processes:
        yield Threads(memory.num_workers)
        return
    if scheduler is not None and processes:
        raise InputError("--processes starts workers of its own; leave it out where --scheduler is given")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError("a cluster needs the package `distributed`: pip install 'ckptlin[cluster]'") from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler`, and workers with "
                "`dask worker ADDRESS`"
            ) from error
        with client:
            if not client.nthreads():
                raise InputError(
                    f"the scheduler at {scheduler} has no workers; start some with `dask worker {scheduler}`"
                )
            yield Cluster(client)
        return
    with (
        LocalCluster(
            n_workers=num_workers or available_workers(),
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield Cluster(client)
