"""How linear activations look if the weights walk at random, and how much both nulls scatter.

    python -m benchmarks.walking_weights RUN --responses FILE --walks 5

Every tensor takes the run's own increments from checkpoint to checkpoint, each shuffled anew among the tensor's
entries: steps of the same size at the same times, that have nothing to do with one another.  States under such
weights depend on one another as those of the run do, which the walks of `ckptlin activations` leave out.  For
runs with `model.safetensors` and a configuration in each directory, of models that fit into memory four times.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ckptlin.outputs.activation_fit import ActivationFit, fit_activations
from ckptlin.outputs.activations import compute_activations, open_probed, plan_activations
from ckptlin.outputs.decomposition import PARTS, decompose
from ckptlin.outputs.step_weights import WeightReader
from ckptlin.source import open_source

__all__ = ["main", "write_walk"]


def write_walk(run: Path, out: Path, *, seed: int) -> Path:
    """Write a run of the same steps whose increments are shuffled inside each tensor."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    source = open_source([str(run)])
    reader = WeightReader(source)
    before = reader.read(0, lambda num_bytes: None).tensors
    walking = {name: array.astype(np.float64) for name, array in before.items()}
    for row, step in enumerate(source.steps):
        now = reader.read(row, lambda num_bytes: None).tensors
        for name, array in now.items():
            increment = (array.astype(np.float64) - before[name]).reshape(-1)
            walking[name] = walking[name] + rng.permutation(increment).reshape(array.shape)
        before = now
        target = out / f"checkpoint-{step}"
        target.mkdir(parents=True)
        for path in Path(reader.where(row)).iterdir():
            if path.suffix == ".json" and "index" not in path.name:
                shutil.copy(path, target)
        tensors = {name: array.astype(now[name].dtype) for name, array in walking.items()}
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Print the run's figures, and those of every walk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--walks", type=int, default=5)
    options = parser.parse_args(argv)
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        names = {"run": options.run}
        for seed in range(options.walks):
            names[f"walk {seed}"] = write_walk(options.run, root / f"walk-{seed}", seed=seed)
        print("mean R² over tokens (median of coordinates, share above 0.7); below it the null")
        for name, run in names.items():
            plan = plan_activations([str(run)], options.responses, root / f"{name}.states")
            _print(name, fit_activations(compute_activations(plan).store))
        print("\nmean shares of linear layers for the first to the last step, by seed of the shuffled change")
        for seed in range(options.walks):
            found = decompose(open_probed([str(options.run)], options.responses), seed=seed)
            for name, shares in (
                ("run", found.mean_shares()),
                (f"shuffled {seed}", found.mean_shares(null=True)),
            ):
                if seed == 0 or name != "run":
                    pairs = zip(PARTS, shares or (), strict=False)
                    print(f"{name:<12}", "  ".join(f"{part} {share:7.1%}" for part, share in pairs))


def _print(name: str, fit: ActivationFit) -> None:
    cells = [
        f"{layer.name} {layer.mean:.2f} ({layer.figures.median:.2f}, {layer.figures.above_7:.0%})"
        for layer in fit.layers
    ]
    print(f"{name:<8}", "  ".join(cells), flush=True)
    if name == "run":
        nulls = [
            f"{layer.name} {layer.null.mean:.2f} ({layer.null.median:.2f}, {layer.null.above_7:.0%})"
            for layer in fit.layers
        ]
        print(f"{'null':<8}", "  ".join(nulls))


if __name__ == "__main__":
    main(sys.argv[1:])
