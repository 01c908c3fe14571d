"""Make the golden store of format 1 beside this file: ``python tests/golden/make_store_v1.py``.

It was made once, by the first version that wrote the format, and stays as it is: the tests read it for ever.
Run this only to see how it came about, or as a pattern for the golden store of another format.  Two ingests
make it, the second of which appends; chunks are cut at 16 parameters instead of 2^20, so that a few
kilobytes hold tensors of several chunks.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy

from ckptlin import ingest_plan
from ckptlin.dtypes import from_numpy
from ckptlin.ingest import ingest
from ckptlin.store.layout import param_chunk_shape

HERE = Path(__file__).parent
STEPS = tuple(range(0, 180, 10))
TENSORS = {
    "model.embed_tokens.weight": ((5, 4), ml_dtypes.bfloat16),
    "model.layers.0.mlp.experts.down_proj": ((3, 2, 5), ml_dtypes.bfloat16),
    "model.layers.0.mlp.up_proj.weight": ((3, 4), np.float32),
    "model.norm.weight": ((3,), np.float16),
    "model.scale": ((), np.float64),
    "model.nothing": ((0, 4), np.float32),
    "model.fp8.e4m3": ((4,), ml_dtypes.float8_e4m3fn),
    "model.fp8.e5m2": ((4,), ml_dtypes.float8_e5m2),
    "model.counts": ((2,), np.int64),
    "model.mask": ((5,), np.bool_),
    "__odd/name": ((2,), np.float32),
}
CONFIG = b'{"architectures": ["TinyForCausalLM"], "tie_word_embeddings": true}\n'


def weights_at(step: int) -> dict[str, np.ndarray]:
    """Any bits at all, NaNs among them; every other step repeats the one before but for the lowest bit."""
    weights = {}
    for name, (shape, native) in TENSORS.items():
        dtype = from_numpy(native)
        num_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        random = hashlib.shake_256(f"{name} {step // 20}".encode()).digest(num_bytes)
        bits = np.frombuffer(random, dtype.bits) ^ dtype.bits.type(step // 10 % 2)
        bits = bits & 1 if dtype.zarr == "bool" else bits
        weights[name] = bits.view(dtype.numpy).reshape(shape)
    return weights


def save_run() -> None:
    for step in STEPS:
        directory = Path(f"run/checkpoint-{step}")
        directory.mkdir(parents=True)
        file = directory / "model.safetensors"
        safetensors.numpy.save_file(weights_at(step), file, metadata={"format": "pt"})
        os.utime(file, ns=(0, step * 10**9))
        (directory / "config.json").write_bytes(CONFIG)


def expectations() -> dict[str, object]:
    tensors = {
        name: {
            "dtype": from_numpy(dtype).zarr,
            "shape": list(shape),
            "bits": [weights_at(step)[name].tobytes().hex() for step in STEPS],
        }
        for name, (shape, dtype) in TENSORS.items()
    }
    return {
        "steps": STEPS,
        "tied": {"lm_head.weight": "model.embed_tokens.weight"},
        "config.json": CONFIG.decode(),
        "tensors": tensors,
    }


def main() -> None:
    target = HERE / "store-v1"
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        save_run()
        small = mock.patch.object(ingest_plan, "param_chunk_shape", lambda shape: param_chunk_shape(shape, 16))
        with small:
            first = [f"run/checkpoint-{step}" for step in STEPS[:13]]
            ingest(first, "store")
            ingest("run", "store")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree("store", target, ignore=shutil.ignore_patterns(".lock"))
    (HERE / "store-v1.json").write_text(json.dumps(expectations(), indent=1) + "\n")


if __name__ == "__main__":
    main()
