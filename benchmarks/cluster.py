"""What a large model costs on many workers: a simulation from costs that are measured here.

    python -m benchmarks.cluster

One chunk is encoded, decoded, fitted and predicted on one thread, and Dask's time for a task is taken from a
cluster of two processes with empty tasks.  With these costs the simulation lets workers take one task after the
other: a task first waits for the scheduler, then reads, computes and writes without overlap.  The links, the
storage behind them and its price are assumptions, named in `Assumptions`.
"""

import heapq
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.command import Settings, main_of
from benchmarks.report import Figure, Section
from benchmarks.synthetic import calibrate, trajectory
from ckptlin.dtypes import from_zarr
from ckptlin.execution import Cluster, bundle_size
from ckptlin.kernels.narrow import narrow
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.weighted_sum import BlockSum
from ckptlin.store.chunk_codec import COMPRESSORS, decode_chunk, encode_chunk, encode_plain
from ckptlin.store.layout import TARGET_PARAMS, chunk_steps
from ckptlin.store.metadata import MAP_COMPRESSOR

__all__ = ["Assumptions", "ChunkCosts", "cluster_figures", "simulate"]

_BF16, _F16 = from_zarr("bfloat16"), from_zarr("float16")
_MAPS = {"r2": _F16, "slope": _BF16}


@dataclass(frozen=True)
class Assumptions:
    """What is not measured.

    Attributes
    ----------
    params, checkpoints : int
    changed : float
        Share of the weights that differ between consecutive checkpoints.
    threads : int
        Of each worker.
    link : float
        Bytes a second between a worker and the storage.
    storage : float
        Bytes a second that the storage gives to all of them.
    price : float
        Dollars for a GB (10⁹ bytes) and a month.
    """

    params: float = 32.8e9
    checkpoints: int = 50
    changed: float = 0.28
    threads: int = 8
    link: float = 1.25e9
    storage: float = 20e9
    price: float = 0.023


@dataclass(frozen=True)
class ChunkCosts:
    """Seconds of one thread and bytes of one chunk; ``predict`` and ``fit`` include its decoding."""

    raw_bytes: int
    stored_bytes: int
    map_bytes: int
    ingest_s: float
    fit_s: float
    predict_s: float
    task_s: float


def measure(assumed: Assumptions) -> ChunkCosts:
    """Measure one chunk, best of five."""
    size = chunk_steps(assumed.checkpoints)
    speed = calibrate(assumed.changed, size)
    rows = trajectory(np.random.default_rng(0), TARGET_PARAMS, speed, size)
    bits = np.stack([row.view(np.uint16) for row in rows])
    abscissa = Abscissa.of(np.arange(size) * 100)
    data = encode_chunk(bits.copy(), _BF16, COMPRESSORS["pack"])
    out = np.empty_like(bits)
    coefficients = np.linspace(-1, 1.5, size)
    map_bytes = 0

    def ingest() -> None:
        encode_chunk(bits.copy(), _BF16, COMPRESSORS["pack"])

    def fit() -> None:
        nonlocal map_bytes
        decode_chunk(data, _BF16, out, "chunk")
        result, _ = BlockRegression(_BF16, abscissa, TARGET_PARAMS, tuple(_MAPS)).fit(out)
        map_bytes = 0
        for name, dtype in _MAPS.items():
            values = np.empty(TARGET_PARAMS, dtype.numpy)
            narrow(getattr(result, name), dtype, values)
            map_bytes += len(encode_plain(values.view(dtype.bits), MAP_COMPRESSOR))

    def predict() -> None:
        decode_chunk(data, _BF16, out, "chunk")
        total = BlockSum(_BF16, out[0])
        total.add(out, coefficients)
        total.finish(out[-1], None, _BF16)

    seconds = [_best(function) for function in (ingest, fit, predict)]
    return ChunkCosts(bits.nbytes, len(data), map_bytes, *seconds, task_s=_task_seconds())


def _best(function: object) -> float:
    times = []
    for _ in range(6):  # the first may compile
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def _nothing(item: int) -> int:
    return item


def _task_seconds(num_items: int = 4000) -> float:
    """Measure what Dask takes for a task that does nothing."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        Cluster(client).run(_nothing, range(100))
        started = time.perf_counter()
        Cluster(client).run(_nothing, range(num_items))
        return (time.perf_counter() - started) / (num_items // bundle_size(num_items, 2))


def simulate(
    num_items: int,
    compute_s: float,
    bytes_in: float,
    bytes_out: float,
    workers: int,
    costs: ChunkCosts,
    a: Assumptions,
) -> float:
    """Return the seconds that equal items take: threads take bundles from one scheduler as they become free."""
    threads = workers * a.threads
    size = bundle_size(num_items, threads)
    bandwidth = min(a.link / a.threads, a.storage / threads)
    duration = size * (compute_s + (bytes_in + bytes_out) / bandwidth)
    free = [0.0] * threads
    scheduled = 0.0
    end = 0.0
    for _ in range(-(-num_items // size)):
        start = max(heapq.heappop(free), scheduled)
        scheduled = start + costs.task_s
        end = max(end, start + duration)
        heapq.heappush(free, start + duration)
    return end


def cluster_figures(_: Settings) -> Section:
    """Simulate ingest, fit and extrapolate on 1, 8 and 64 workers."""
    a = Assumptions()
    costs = measure(a)
    blocks = int(np.ceil(a.params / TARGET_PARAMS))
    rows = -(-a.checkpoints // chunk_steps(a.checkpoints))
    raw, stored = a.params * 2 * a.checkpoints, costs.stored_bytes * rows * blocks
    maps, checkpoint = costs.map_bytes * blocks, 2 * TARGET_PARAMS
    note = f"{costs.raw_bytes / 1e6:.0f} MB of raw bytes"
    figures = [
        Figure("a chunk, encode", costs.ingest_s * 1e3, unit="ms", note=note),
        Figure("a chunk, decode and fit", costs.fit_s * 1e3, unit="ms", note="with maps"),
        Figure("a chunk, decode and predict", costs.predict_s * 1e3, unit="ms"),
        Figure("a Dask task", costs.task_s * 1e3, unit="ms"),
        Figure("raw checkpoints", raw / 1e12, unit="TB", note=f"{raw / 1e9 * a.price:,.0f} dollars a month"),
        Figure("store", stored / 1e12, unit="TB", note=f"{stored / 1e9 * a.price:,.0f} dollars a month"),
        Figure("maps", maps / 1e12, unit="TB", note=f"{maps / 1e9 * a.price:,.0f} dollars a month"),
    ]
    for workers in (1, 8, 64):
        # An ingest task is one chunk; a fit or a prediction loops over the rows of chunks of its block.
        of = {
            "ingest": (rows * blocks, costs.ingest_s, raw / (rows * blocks), costs.stored_bytes),
            "fit": (blocks, rows * costs.fit_s, rows * costs.stored_bytes, costs.map_bytes),
            "extrapolate": (blocks, rows * costs.predict_s, rows * costs.stored_bytes, checkpoint),
        }
        for name, (num_items, compute_s, bytes_in, bytes_out) in of.items():
            seconds = simulate(num_items, compute_s, bytes_in, bytes_out, workers, costs, a)
            figures.append(Figure(f"{name}, {workers} workers", seconds, unit="s", note=f"{num_items:,} items"))
    title = f"Simulated: {a.params / 1e9:.1f} B parameters in bfloat16, {a.checkpoints} checkpoints"
    notes = [
        f"assumed: {a.threads} threads and {a.link / 1e9:.2f} GB/s a worker, {a.storage / 1e9:.0f} GB/s "
        f"for all, {a.changed:.0%} of the weights changed a checkpoint, {a.price} dollars a GB and month",
        "a task reads, computes and writes one after the other; tasks leave the scheduler one by one",
    ]
    return Section(title, figures, notes)


def main() -> None:
    """Measure, simulate, print and save."""
    main_of({"cluster": cluster_figures}, __doc__)


if __name__ == "__main__":
    main()
