"""What the step delta is worth: size and speed of compressors with and without it, on one thread.

    python -m benchmarks.codecs

One chunk of 2^20 simulated bfloat16 trajectories over 14 checkpoints (`benchmarks.synthetic`), at three shares
of weights that change from one checkpoint to the next.  The ratio of the archive codec is held to a bar.
"""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numcodecs import blosc

from benchmarks.report import Figure, print_figures
from benchmarks.synthetic import calibrate, trajectory
from ckptlin.dtypes import from_zarr
from ckptlin.store.chunk_codec import (
    COMPRESSORS,
    BloscCompressor,
    Compressor,
    decode_chunk,
    decode_plain,
    encode_chunk,
    encode_plain,
)

__all__ = ["codec_figures"]

_CHECKPOINTS = 14
_PARAMS = 1 << 20
_BF16 = from_zarr("bfloat16")
_COMPRESSORS: dict[str, Compressor] = {
    "lz4-5": COMPRESSORS["lz4"],
    "zstd-1": COMPRESSORS["zstd"],
    "zstd-3": BloscCompressor("zstd", 3),
    "archive": COMPRESSORS["archive"],
}
# What the archive codec is for: raw to stored bytes at 20% changed.
_ARCHIVE_RATIO = 7.5


def codec_figures(
    bits: np.ndarray[tuple[int, int], np.dtype[np.uint16]], compressor: Compressor, *, delta: bool
) -> tuple[float, float, float]:
    """Measure one codec: raw to stored bytes, and GB/s of raw bytes to encode and to decode, best of 15."""

    def encode(work: np.ndarray) -> bytes:
        return encode_chunk(work, _BF16, compressor) if delta else encode_plain(work, compressor)

    def decode(work: np.ndarray) -> None:
        decode_chunk(data, _BF16, work, "chunk") if delta else decode_plain(data, work, "chunk")

    data = encode(bits.copy())
    return bits.nbytes / len(data), _speed(encode, bits), _speed(decode, bits)


def _speed(function: Callable[[np.ndarray], object], bits: np.ndarray) -> float:
    times = []
    for _ in range(15):
        work = bits.copy()
        started = time.perf_counter()
        function(work)
        times.append(time.perf_counter() - started)
    return bits.nbytes / min(times) / 1e9


def main() -> None:
    """Measure and print a table in Markdown."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "numcodecs", "pcodec"))
    print(
        f"`python -m benchmarks.codecs`: one thread of {cpu}, Python {platform.python_version()}, {versions}\n"
    )
    print("| changed | compressor | ratio | encode GB/s | decode GB/s | ratio, no delta | encode | decode |")
    print("|---|---|---|---|---|---|---|---|")
    blosc.set_nthreads(1)
    archive = {}
    for share in (0.20, 0.28, 0.40):
        rows = trajectory(np.random.default_rng(0), _PARAMS, calibrate(share, _CHECKPOINTS), _CHECKPOINTS)
        bits = np.stack([row.view(np.uint16) for row in rows])
        changed = np.mean(bits[1:] != bits[:-1])
        for name, compressor in _COMPRESSORS.items():
            cells = []
            for delta in (True, False):
                ratio, encode, decode = codec_figures(bits, compressor, delta=delta)
                cells += [f"{ratio:.2f}", f"{encode:.2f}", f"{decode:.2f}"]
                if delta and name == "archive":
                    archive[share] = ratio
            print(f"| {changed:.0%} | {name} | {' | '.join(cells)} |")
    print()
    print_figures("Archive", [Figure("ratio at 20% changed", archive[0.20], _ARCHIVE_RATIO, at_least=True)])


if __name__ == "__main__":
    main()
