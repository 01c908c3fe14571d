"""NumPy over memory maps: R² of every weight, in float64, block by block.

python -m benchmarks.rivals.numpy_memmap RUN
"""

import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

__all__ = ["open_weights", "r_squared", "whole_r2"]


def open_weights(file: Path) -> dict[str, np.ndarray]:
    """Map a bfloat16 file of safetensors: a flat array a tensor, nothing read."""
    with file.open("rb") as opened:
        header_bytes = struct.unpack("<Q", opened.read(8))[0]
        header = json.loads(opened.read(header_bytes))
    data = np.memmap(file, np.uint8, "r", offset=8 + header_bytes)
    return {
        name: data[slice(*entry["data_offsets"])].view(ml_dtypes.bfloat16)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def r_squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return R² of each column of ``y (len(x), num_params)``, NaN where the column is constant."""
    dx = x - x.mean()
    dy = y - y.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return (dx @ dy) ** 2 / ((dx @ dx) * np.einsum("ij,ij->j", dy, dy))


def whole_r2(run: Path, block: int = 1 << 20) -> tuple[int, float]:
    """Return how many weights moved, and the mean of their R²."""
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in run.iterdir())
    maps = [open_weights(run / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    x = np.array(steps, np.float64)
    count, total = 0, 0.0
    for name, first in maps[0].items():
        for start in range(0, first.size, block):
            y = np.stack([weights[name][start : start + block].astype(np.float64) for weights in maps])
            y = y[:, np.ptp(y, axis=0) > 0]
            count += y.shape[1]
            total += r_squared(x, y).sum()
    return count, float(total / count)


if __name__ == "__main__":
    num_moved, mean = whole_r2(Path(sys.argv[1]))
    print(json.dumps({"count": num_moved, "mean": mean}))
