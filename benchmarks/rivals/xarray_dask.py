"""xarray and Dask on a plain zarr: R² of every weight.

    python -m benchmarks.rivals.xarray_dask RUN.zarr

The zarr holds what `write_zarr` puts there, which no figure counts: float32, since zarr has no bfloat16 of
its own, all steps of a chunk of 2^18 weights together, with zarr's default codec. ``polyfit`` on a Dask array
fits one column at a time in Python: 40 s for a million weights of 6 checkpoints. So the program that is timed
lets ``map_blocks`` call NumPy; ``--polyfit`` takes the other.
"""

import json
import sys
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from benchmarks.rivals.numpy_memmap import open_weights, r_squared

__all__ = ["whole_r2", "write_zarr"]

_CHUNK = 1 << 18


def write_zarr(run: Path, path: Path) -> None:
    """Write a run as a zarr group: an array ``(num_steps, num_params) float32`` a tensor."""
    steps = sorted(int(checkpoint.name.removeprefix("checkpoint-")) for checkpoint in run.iterdir())
    maps = [open_weights(run / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    group = zarr.create_group(path)
    group.create_array("step", data=np.array(steps), dimension_names=["step"])
    for name, first in maps[0].items():
        array = group.create_array(
            name,
            shape=(len(steps), first.size),
            chunks=(len(steps), min(_CHUNK, first.size)),
            dtype="float32",
            dimension_names=["step", f"{name}:param"],
        )
        for start in range(0, first.size, _CHUNK):
            rows = [weights[name][start : start + _CHUNK].astype(np.float32) for weights in maps]
            array[:, start : start + _CHUNK] = np.stack(rows)


def whole_r2(path: Path, *, polyfit: bool = False) -> tuple[int, float]:
    """Return how many weights moved, and the mean of their R²."""
    import dask

    data = xr.open_zarr(path, consolidated=False)
    x = data.step.values.astype(np.float64)
    sums = []
    for weights in data.data_vars.values():
        if polyfit:
            found = weights.astype(np.float64).polyfit("step", 1, skipna=False, full=True).polyfit_residuals
            spread = weights.astype(np.float64).var("step") * len(x)
            r2 = (1 - found / spread.where(spread > 0)).data
        else:
            r2 = weights.data.map_blocks(
                lambda block: r_squared(x, block.astype(np.float64)), dtype=np.float64, drop_axis=0
            )
        sums += [r2.size - np.isnan(r2).sum(), np.nansum(r2)]
    found = dask.compute(*sums, scheduler="threads")
    return int(sum(found[::2])), float(sum(found[1::2]) / sum(found[::2]))


if __name__ == "__main__":
    num_moved, mean = whole_r2(Path(sys.argv[1]), polyfit="--polyfit" in sys.argv)
    print(json.dumps({"count": num_moved, "mean": mean}))
