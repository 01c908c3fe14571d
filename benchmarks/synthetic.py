"""A synthetic run with the names and shapes of a Qwen2.5 model.

Float32 master weights N(0, 0.02²) move by a drift of their own and a random walk, and are rounded to bfloat16
at each checkpoint.  How fast they move is calibrated to the share of weights that differ between consecutive
checkpoints: 20 to 40% is what RL at lr 1e-6 shows.

    python -m benchmarks.synthetic /scratch/run --model 0.5b --checkpoints 14 --changed 0.28
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np

from ckptlin.checkpoints import CheckpointWriter, plan_files
from ckptlin.dtypes import from_zarr
from ckptlin.trajectory import TensorSpec

__all__ = ["MODELS", "Architecture", "calibrate", "make_run", "tensor_specs", "trajectory"]

_PIECE = 1 << 20


@dataclass(frozen=True)
class Architecture:
    """The sizes that give a Qwen2 model its tensors."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int = 151936

    def scaled(self, factor: float) -> "Architecture":
        """Return about ``factor`` times the parameters: fewer layers and a smaller vocabulary."""
        return Architecture(
            self.hidden,
            max(1, round(self.layers * factor)),
            self.heads,
            self.kv_heads,
            self.intermediate,
            max(1024, round(self.vocab * factor)),
        )


MODELS = {
    "0.05b": Architecture(384, 12, 6, 2, 1536, 65536),
    "0.5b": Architecture(896, 24, 14, 2, 4864),
    "1.5b": Architecture(1536, 28, 12, 2, 8960),
}


def tensor_specs(arch: Architecture) -> list[TensorSpec]:
    """Return the tensors of a tied Qwen2 model, in the order of transformers' files."""
    head = arch.hidden // arch.heads
    dtype = from_zarr("bfloat16")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (arch.vocab, arch.hidden)}
    for layer in range(arch.layers):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm.weight": (arch.hidden,),
                "mlp.down_proj.weight": (arch.hidden, arch.intermediate),
                "mlp.gate_proj.weight": (arch.intermediate, arch.hidden),
                "mlp.up_proj.weight": (arch.intermediate, arch.hidden),
                "post_attention_layernorm.weight": (arch.hidden,),
                "self_attn.k_proj.bias": (arch.kv_heads * head,),
                "self_attn.k_proj.weight": (arch.kv_heads * head, arch.hidden),
                "self_attn.o_proj.weight": (arch.hidden, arch.heads * head),
                "self_attn.q_proj.bias": (arch.heads * head,),
                "self_attn.q_proj.weight": (arch.heads * head, arch.hidden),
                "self_attn.v_proj.bias": (arch.kv_heads * head,),
                "self_attn.v_proj.weight": (arch.kv_heads * head, arch.hidden),
            }.items()
        }
    shapes["model.norm.weight"] = (arch.hidden,)
    return [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]


def make_run(
    root: Path,
    arch: Architecture,
    *,
    checkpoints: int = 14,
    every: int = 100,
    changed: float = 0.28,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the run's checkpoints, ``root/checkpoint-N``, all of them piece by piece at a time."""
    specs = tensor_specs(arch)
    speed = calibrate(changed, checkpoints)
    plans = plan_files(specs, {t.name: "model.safetensors" for t in specs})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "intermediate_size": arch.intermediate,
        "vocab_size": arch.vocab,
        "tie_word_embeddings": True,
    }
    writers = [CheckpointWriter(root / f"checkpoint-{i * every}", plans) for i in range(checkpoints)]
    try:

        def write(job: tuple[int, TensorSpec, int]) -> None:
            number, spec, start = job
            size = min(_PIECE, spec.num_params - start)
            rng = np.random.default_rng([seed, number])
            for writer, row in zip(writers, trajectory(rng, size, speed, checkpoints), strict=True):
                writer.write(spec.name, start, row)

        starts = [(spec, start) for spec in specs for start in range(0, spec.num_params, _PIECE)]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(write, ((i, spec, start) for i, (spec, start) in enumerate(starts))))
        for writer in writers:
            writer.add_file("config.json", json.dumps(config).encode())
            writer.commit()
    finally:
        for writer in writers:
            writer.abort()


def trajectory(
    rng: np.random.Generator, size: int, speed: float, checkpoints: int
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.generic]]]:
    """Yield some weights at each checkpoint, as bfloat16; ``speed`` is of drift and noise alike."""
    weights = rng.standard_normal(size, np.float32) * np.float32(0.02)
    drift = rng.standard_normal(size, np.float32) * np.float32(speed)
    for _ in range(checkpoints):
        yield weights.astype(ml_dtypes.bfloat16)
        weights += drift
        weights += rng.standard_normal(size, np.float32) * np.float32(speed)


def calibrate(changed: float, checkpoints: int) -> float:
    """Find the speed at which this share of weights differs between consecutive checkpoints."""
    low, high = 1e-7, 1e-3
    for _ in range(30):
        speed = float(np.sqrt(low * high))
        rows = [r.view(np.uint16) for r in trajectory(np.random.default_rng(1), 1 << 16, speed, 4)]
        share = np.mean([np.mean(a != b) for a, b in pairwise(rows)])
        low, high = (speed, high) if share < changed else (low, speed)
    return speed


def main() -> None:
    """Parse the command line and make a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=sorted(MODELS), default="1.5b")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the layers and the vocabulary")
    parser.add_argument("--checkpoints", type=int, default=14)
    parser.add_argument("--changed", type=float, default=0.28, help="share of weights that differ")
    args = parser.parse_args()
    arch = MODELS[args.model].scaled(args.scale) if args.scale != 1.0 else MODELS[args.model]
    make_run(args.out, arch, checkpoints=args.checkpoints, changed=args.changed)
    num_params = sum(t.num_params for t in tensor_specs(arch))
    print(f"{args.out}: {args.checkpoints} checkpoints of {num_params:,} parameters")


if __name__ == "__main__":
    main()
