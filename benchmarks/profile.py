"""Where the time of a block goes: each part of ingest, fit and extrapolate on one thread, from the page cache.

    python -m benchmarks.profile

One chunk of 2^20 bfloat16 trajectories over 14 checkpoints, 20% changed.  The parts are those that the commands
call, one after the other, best of 15; what is not here is waiting for the disk, and Python between the parts.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc

from benchmarks.command import Settings, main_of
from benchmarks.report import Figure, Section
from benchmarks.synthetic import calibrate, trajectory
from ckptlin.dtypes import from_zarr
from ckptlin.kernels.bit_pack import pack, unpack
from ckptlin.kernels.narrow import narrow
from ckptlin.kernels.regression import Abscissa, BlockRegression
from ckptlin.kernels.step_delta import FLOAT
from ckptlin.kernels.weighted_sum import BlockSum
from ckptlin.store.chunk_codec import COMPRESSORS, encode_chunk, encode_plain
from ckptlin.store.codec_names import BIT_PACK_MAGIC
from ckptlin.store.local_files import LocalFiles
from ckptlin.store.metadata import MAP_COMPRESSOR

__all__ = ["profile_figures"]

_CHECKPOINTS, _PARAMS = 14, 1 << 20
_BF16, _F16 = from_zarr("bfloat16"), from_zarr("float16")


def profile_figures(_: Settings) -> Section:
    """Measure the parts."""
    blosc.set_nthreads(1)
    rows = trajectory(np.random.default_rng(0), _PARAMS, calibrate(0.2, _CHECKPOINTS), _CHECKPOINTS)
    bits = np.stack([row.view(np.uint16) for row in rows])
    compressed = encode_chunk(bits, _BF16, COMPRESSORS["pack"])
    packed = np.frombuffer(compressed, np.uint8)[len(BIT_PACK_MAGIC) : -4]
    out, work = np.empty_like(bits), np.empty_like(bits)
    regression = BlockRegression(_BF16, Abscissa.of(np.arange(_CHECKPOINTS) * 100), _PARAMS, ("r2", "slope"))
    result, _trusted = regression.fit(bits)
    r2, slope = np.empty(_PARAMS, np.float16), np.empty(_PARAMS, _BF16.numpy)
    coefficients = np.linspace(-1, 1.5, _CHECKPOINTS)

    def predict() -> None:
        total = BlockSum(_BF16, bits[0])
        total.add(bits, coefficients)
        total.finish(bits[-1], None, _BF16)

    def fit_packed() -> None:
        regression.fit_packed([packed], bits.shape, FLOAT, (0, _CHECKPOINTS), np.empty(0, np.int64))

    def encode_maps() -> None:
        encode_plain(r2.view(np.uint16), MAP_COMPRESSOR)
        encode_plain(slope.view(np.uint16), MAP_COMPRESSOR)

    def narrow_maps() -> None:
        narrow(result.r2, _F16, r2)
        narrow(result.slope, _BF16, slope)

    with tempfile.TemporaryDirectory(prefix="ckptlin-bench-") as directory:
        files = LocalFiles(Path(directory))
        files.write("chunk", compressed)
        narrow_maps()
        parts: dict[str, Callable[[], object]] = {
            "ingest: copy 14 rows": lambda: np.copyto(work, bits),
            "ingest: crc32c of the rows": lambda: [google_crc32c.value(row.view(np.uint8)) for row in bits],
            "ingest: step delta and bit planes": lambda: pack(bits, FLOAT),
            "ingest: the same, joined, crc32c": lambda: encode_chunk(bits, _BF16, COMPRESSORS["pack"]),
            "store: read a chunk": lambda: files.read("chunk"),
            "store: crc32c": lambda: google_crc32c.value(compressed[:-4]),
            "store: bit planes and step delta": lambda: unpack(packed, out, FLOAT),
            "fit: regression, maps in float32": lambda: regression.fit(bits),
            "fit: both together, group by group": fit_packed,
            "fit: maps to 16 bits": narrow_maps,
            "fit: maps, bitshuffle and lz4": encode_maps,
            "extrapolate: weighted sum, rounded": predict,
        }
        figures = []
        for name, part in parts.items():
            seconds = _best(part)
            speed = bits.nbytes / seconds / 1e9
            figures.append(Figure(name, seconds * 1e3, unit="ms", note=f"{speed:.1f} GB/s of raw bytes"))
    title = f"Parts of a block, one thread: {_CHECKPOINTS} x {_PARAMS:,} bfloat16, {bits.nbytes / 1e6:.0f} MB"
    return Section(title, figures)


def _best(function: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Measure, print and save."""
    main_of({"profile": profile_figures}, __doc__)


if __name__ == "__main__":
    main()
