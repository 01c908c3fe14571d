"""What the step delta is worth: size and speed of compressors with and without it, on one thread.

    python -m benchmarks.codecs

One chunk of 2^20 simulated bfloat16 trajectories over 14 checkpoints (`benchmarks.synthetic`), at three shares
of weights that change from one checkpoint to the next.
"""

import time
from collections.abc import Callable

import numpy as np
from numcodecs import blosc

from benchmarks.command import Settings, main_of
from benchmarks.report import Figure, Section
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

__all__ = ["codec_figures", "codec_speeds"]

_CHECKPOINTS = 14
_PARAMS = 1 << 20
_BF16 = from_zarr("bfloat16")
_COMPRESSORS: dict[str, Compressor] = {
    "pack": COMPRESSORS["pack"],
    "lz4-5": COMPRESSORS["lz4"],
    "zstd-1": COMPRESSORS["zstd"],
    "zstd-3": BloscCompressor("zstd", 3),
    "archive": COMPRESSORS["archive"],
}
# Raw to stored bytes with the step delta, by codec and share of weights that change.
_BARS = {("pack", 0.20): 4.0, ("pack", 0.40): 3.0, ("archive", 0.20): 7.5}


def codec_speeds(
    bits: np.ndarray[tuple[int, int], np.dtype[np.uint16]], compressor: Compressor, *, delta: bool
) -> tuple[float, float, float]:
    """Measure one codec: raw to stored bytes, and GB/s of raw bytes to encode and to decode, best of 10."""

    def encode(work: np.ndarray) -> bytes:
        return encode_chunk(work, _BF16, compressor) if delta else encode_plain(work, compressor)

    def decode(work: np.ndarray) -> None:
        decode_chunk(data, _BF16, work, "chunk") if delta else decode_plain(data, work, "chunk")

    data = encode(bits.copy())
    return bits.nbytes / len(data), _speed(encode, bits), _speed(decode, bits)


def _speed(function: Callable[[np.ndarray], object], bits: np.ndarray) -> float:
    times = []
    for _ in range(10):
        work = bits.copy()
        started = time.perf_counter()
        function(work)
        times.append(time.perf_counter() - started)
    return bits.nbytes / min(times) / 1e9


def codec_figures(_: Settings) -> Section:
    """Measure each compressor at each rate of change, with the step delta and without."""
    blosc.set_nthreads(1)
    figures = []
    for share in (0.20, 0.28, 0.40):
        rows = trajectory(np.random.default_rng(0), _PARAMS, calibrate(share, _CHECKPOINTS), _CHECKPOINTS)
        bits = np.stack([row.view(np.uint16) for row in rows])
        changed = np.mean(bits[1:] != bits[:-1])
        for name, compressor in _COMPRESSORS.items():
            for delta in (True, False):
                ratio, encode, decode = codec_speeds(bits, compressor, delta=delta)
                codec = name if delta else f"{name}, no delta"
                bar = _BARS.get((name, share)) if delta else None
                note = f"encode {encode:.2f}, decode {decode:.2f} GB/s"
                what = f"raw / stored, {codec}, {changed:.0%} changed"
                figures.append(Figure(what, ratio, bar, at_least=True, note=note))
    title = f"Codecs, one thread: a chunk of {_CHECKPOINTS} x {_PARAMS:,} bfloat16, GB of raw bytes a second"
    return Section(title, figures)


def main() -> None:
    """Measure, print and save."""
    main_of({"codecs": codec_figures}, __doc__)


if __name__ == "__main__":
    main()
