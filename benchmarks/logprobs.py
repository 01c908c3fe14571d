"""Log-probabilities beside a bare forward of transformers over the same tokens, in the same batches.

    python -m benchmarks.logprobs --repeats 5

Models made on the spot, float32: the demo's, and a Qwen2 of 30 million
parameters with a vocabulary of 32,768, more than half of which is its head.  The bare forward makes all
logits of a batch and does nothing with them.  Both are measured in turn, round by round; what counts is
the median of the rounds' ratios.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.command import Settings, main_of
from benchmarks.report import Figure, Section
from ckptlin.demo import base_model
from ckptlin.outputs.scorers import Probe, ScorerOptions, open_scorer
from ckptlin.outputs.scorers.hf import batches_by_length
from ckptlin.outputs.step_weights import WeightReader, sidecar_directory
from ckptlin.source import open_source

__all__ = ["log_prob_figures"]

_BATCH_TOKENS = 4096


def log_prob_figures(settings: Settings) -> Section:
    """Measure both models."""
    figures = []
    with TemporaryDirectory() as directory:
        cases = {
            "demo's model, 112 k parameters": (base_model(), 16, (2048, 10, 12)),
            "Qwen2, 30 M parameters, vocabulary 32,768": (_make(Path(directory)), 32_768, (8, 64, 448)),
        }
        for name, (model, vocab_size, (num_probes, num_prompt, num_answer)) in cases.items():
            rng = np.random.default_rng(0)
            probes = [
                Probe(
                    rng.integers(2, vocab_size, num_prompt).astype(np.int32),
                    rng.integers(2, vocab_size, int(rng.integers(num_answer // 2, num_answer + 1))).astype(
                        np.int32
                    ),
                )
                for _ in range(num_probes)
            ]
            for with_entropy in (False, True):
                ratio, speed = _measure(model, probes, settings.repeats, with_entropy=with_entropy)
                label = f"{name}{', with entropy' if with_entropy else ''}"
                bar = None if with_entropy else 0.8
                note = f"{speed:,.0f} tokens/s, prompts included"
                figures.append(Figure(label, ratio, bar, at_least=True, unit="x", note=note))
    return Section("Log-probabilities: speed beside a bare forward of transformers", figures)


def _make(directory: Path) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32_768,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory / "model")
    return directory / "model"


def _measure(model: Path, probes: list[Probe], repeats: int, *, with_entropy: bool) -> tuple[float, float]:
    import torch

    source = open_source([f"0={model}"])
    reader = WeightReader(source)
    options = ScorerOptions(
        max_tokens=max(p.num_tokens for p in probes), dtype="float32", batch_tokens=_BATCH_TOKENS, device="cpu"
    )
    with sidecar_directory(source, 0) as place, open_scorer("hf", options) as scorer:
        scorer.load(reader.read(0, lambda num_bytes: None), place)
        network: Any = scorer._model  # type: ignore[attr-defined]  # the very same weights
        inputs = []
        for batch in batches_by_length(probes, _BATCH_TOKENS):
            ids = np.zeros((len(batch), max(probes[i].num_tokens for i in batch)), np.int64)
            for row, index in enumerate(batch):
                whole = np.concatenate([probes[index].prompt_ids, probes[index].token_ids])
                ids[row, : len(whole)] = whole
            inputs.append(torch.from_numpy(ids))

        def bare() -> None:
            with torch.inference_mode():
                for ids in inputs:
                    network(input_ids=ids, use_cache=False)

        def ours() -> None:
            for _ in scorer.score(probes, with_entropy=with_entropy):
                pass

        times = [(_seconds(bare), _seconds(ours)) for _ in range(repeats + 1)][1:]
    num_tokens = sum(p.num_tokens for p in probes)
    return statistics.median(b / o for b, o in times), num_tokens / statistics.median(o for _, o in times)


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and save."""
    main_of({"logprobs": log_prob_figures}, __doc__)


if __name__ == "__main__":
    main()
