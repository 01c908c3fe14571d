"""Time for twelve checkpoints in one engine of vLLM against twelve starts: ``python -m benchmarks.reload``.

Each start is a process of its own, as twelve calls of ``ckptlin evaluate`` would be.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ckptlin.demo import base_model
from ckptlin.evaluate.engines import EngineOptions, Request, open_engine
from ckptlin.evaluate.sampling import Sampling

__all__ = ["main"]

_NUM_CHECKPOINTS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("checkpoints", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.checkpoints:
        _answer(given.engine, [Path(path) for path in given.checkpoints])
        return
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = _make(Path(directory))
        in_one = _elapsed_s(given.engine, checkpoints)
        print(f"{_NUM_CHECKPOINTS} checkpoints in one engine: {in_one:.1f} s", flush=True)
        apart = sum(_elapsed_s(given.engine, [checkpoint]) for checkpoint in checkpoints)
        print(f"{_NUM_CHECKPOINTS} starts: {apart:.1f} s; one engine takes {in_one / apart:.0%} of that")


def _make(directory: Path) -> list[Path]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_model())
    paths = [directory / f"checkpoint-{step}" for step in range(_NUM_CHECKPOINTS)]
    for path in paths:
        model.save_pretrained(path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-2 * torch.randn_like(parameter))
    return paths


def _elapsed_s(engine: str, checkpoints: list[Path]) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.reload", "--engine", engine, *map(str, checkpoints)]
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def _answer(name: str, checkpoints: list[Path]) -> None:
    requests = [Request((2 + i % 10, 12, 3, 13), i) for i in range(256)]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=16)
    with open_engine(name, EngineOptions(64, dtype="float32", kv_cache_gib=0.25)) as engine:
        for checkpoint in checkpoints:
            engine.load(checkpoint)
            assert sum(map(len, engine.generate(requests, sampling, stop_ids=[1]))) == len(requests)  # noqa: S101


if __name__ == "__main__":
    main()
