"""Two-point extrapolation with transformers: load both models, add their weights, save.

    python -m benchmarks.rivals.transformers_sum FIRST SECOND ALPHA OUT

writes FIRST + ALPHA (SECOND − FIRST), computed in float32 and rounded to the models' dtype.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

__all__ = ["extrapolate_models"]


@torch.no_grad()
def extrapolate_models(first: Path, second: Path, alpha: float, out: Path) -> None:
    """Write the extrapolated model."""
    model = AutoModelForCausalLM.from_pretrained(first, dtype="auto")
    after = AutoModelForCausalLM.from_pretrained(second, dtype="auto").state_dict()
    state = {
        name: torch.lerp(weights.float(), after[name].float(), alpha).to(weights.dtype)
        for name, weights in model.state_dict().items()
    }
    model.load_state_dict(state)
    model.save_pretrained(out)


if __name__ == "__main__":
    extrapolate_models(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
