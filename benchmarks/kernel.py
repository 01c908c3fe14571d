"""The kernels alone, one thread, on blocks in memory: GB of input a second.

    python -m benchmarks.kernel

Blocks of 1.8 MiB stay in the cache, those of 28 MiB do not (on most processors). The yardstick is how fast
one thread reads memory at all (`numpy.sum` of 64-bit integers) on a block that does not fit into the cache.
"""

import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from benchmarks.command import Settings, main_of
from benchmarks.report import Figure, Section
from ckptlin.dtypes import from_numpy
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.step_delta import FLOAT, delta_decode, delta_encode
from ckptlin.kernels.weighted_sum import BlockSum
from ckptlin.store.chunk_codec import COMPRESSORS, decode_chunk, encode_chunk

__all__ = ["kernel_figures", "kernel_speeds"]

_STEPS = 14


def kernel_speeds(num_params: int) -> dict[str, float]:
    """Measure every kernel on one block of bfloat16; GB/s of input, best of 15."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(num_params, np.float32) * np.float32(0.02)
    rows = []
    for _ in range(_STEPS):
        rows.append(weights.astype(ml_dtypes.bfloat16))
        weights = weights + rng.standard_normal(num_params, np.float32) * np.float32(1.5e-5)
    values = np.stack(rows)
    dtype = from_numpy(values.dtype)
    bits = values.view(dtype.bits)
    abscissa = Abscissa.of(np.arange(_STEPS) * 100)
    delta = bits.copy()
    delta_encode(delta, FLOAT)
    encoded = encode_chunk(bits.copy(), dtype, COMPRESSORS["pack"])
    out = np.empty_like(bits)
    coefficients = np.linspace(-0.1, 0.3, _STEPS)
    big = np.ones(1 << 25, np.int64)

    def predict() -> None:
        total = BlockSum(dtype, bits[0])
        total.add(bits, coefficients)
        total.finish(bits[-1], None, dtype)

    cases: dict[str, tuple[Callable[[], object], int]] = {
        "read memory": (lambda: big.sum(), big.nbytes),
        "fit, R² and slope maps": (
            lambda: BlockRegression(dtype, abscissa, num_params, ("r2", "slope")).fit(bits),
            bits.nbytes,
        ),
        "fit, no maps": (lambda: BlockRegression(dtype, abscissa, num_params).fit(bits), bits.nbytes),
        "weighted sum, 14 rows": (predict, bits.nbytes),
        "step delta, encode": (lambda: delta_encode(delta, FLOAT), bits.nbytes),
        "step delta, decode": (lambda: delta_decode(delta, FLOAT), bits.nbytes),
        "chunk, encode": (lambda: encode_chunk(bits.copy(), dtype, COMPRESSORS["pack"]), bits.nbytes),
        "chunk, decode": (lambda: decode_chunk(encoded, dtype, out, "block"), bits.nbytes),
    }
    return {name: num_bytes / best_s(function) / 1e9 for name, (function, num_bytes) in cases.items()}


def best_s(function: Callable[[], object], repeats: int = 15) -> float:
    """Return the shortest time in seconds of several calls, after one that compiles."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def kernel_figures(_: Settings) -> Section:
    """Measure every kernel on a block that stays in the cache and on one that does not."""
    figures = []
    for num_params in (1 << 16, 1 << 20):
        speeds = kernel_speeds(num_params)
        memory = speeds["read memory"]
        for name, speed in speeds.items():
            size = f"{_STEPS * num_params * 2 / 2**20:.1f} MiB"
            bar = 3.0 if name.startswith("fit") and num_params == 1 << 16 else None
            label = name if name == "read memory" else f"{name}, {size}"
            note = f"{speed / memory:.0%} of reading memory"
            figures.append(Figure(label, speed, bar, at_least=True, unit="GB/s", note=note))
    return Section(f"Kernels, one thread: bfloat16, {_STEPS} checkpoints, GB of input a second", figures)


def main() -> None:
    """Measure, print and save."""
    main_of({"kernel": kernel_figures}, __doc__)


if __name__ == "__main__":
    main()
