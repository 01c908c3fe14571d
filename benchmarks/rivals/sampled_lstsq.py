"""The straightforward script: every state dict in RAM, a line fitted to 0.1% of each tensor with torch.

    python -m benchmarks.rivals.sampled_lstsq RUN

After the description of the analysis in arXiv 2601.04537: positions sampled once for each tensor whose name
ends in ``.weight``, kept if their range exceeds 1e-4 and they take at least 4 distinct values, fitted in
float64.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

__all__ = ["sampled_r2"]


def sampled_r2(run: Path, share: float = 1e-3, seed: int = 0) -> torch.Tensor:
    """Return R² of the sampled weights that pass the filters, ``(num_kept,) float64``."""
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in run.iterdir())
    states = [load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in steps]
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(steps, dtype=torch.float64)
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    found = []
    for name in states[0]:
        if not name.endswith(".weight"):
            continue
        size = states[0][name].numel()
        picked = torch.randperm(size, generator=generator)[: max(1, round(share * size))]
        y = torch.stack([state[name].flatten()[picked].double() for state in states])
        ordered = y.sort(dim=0).values
        distinct = 1 + (ordered[1:] != ordered[:-1]).sum(dim=0)
        y = y[:, (ordered[-1] - ordered[0] > 1e-4) & (distinct >= 4)]
        if y.shape[1]:
            line = design @ torch.linalg.lstsq(design, y).solution
            residual = (y - line).square().sum(dim=0)
            found.append(1 - residual / (y - y.mean(dim=0)).square().sum(dim=0))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


if __name__ == "__main__":
    r2 = sampled_r2(Path(sys.argv[1]))
    print(json.dumps({"count": len(r2), "mean": r2.mean().item() if len(r2) else None}))
