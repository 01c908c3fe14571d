"""Runs of tiny language models, saved by transformers with a tokenizer; weights read by safetensors itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.torch
import torch

__all__ = ["CHAT_TEMPLATE", "load_weights", "save_model_run"]

CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
_BITS = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}


def load_weights(directory: Path) -> dict[str, np.ndarray]:
    """Read all weights of a checkpoint with the safetensors library."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in safetensors.torch.load_file(path).items():
            word, dtype = _BITS.get(tensor.dtype, (None, None))
            found[name] = tensor.numpy() if word is None else tensor.view(word).numpy().view(dtype)
    return found


def save_model_run(
    root: Path,
    architecture: str,
    *,
    is_tied: bool,
    steps: Sequence[int] = (0, 100, 200, 300),
    dtype: torch.dtype = torch.bfloat16,
    **save_options: Any,
) -> Path:
    """Save checkpoints of a Qwen2 or Llama model whose weights drift and jitter, each with its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    new_config, new_model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    config = new_config(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=is_tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = new_model(config).to(dtype)
    model.generation_config = GenerationConfig(max_new_tokens=5, eos_token_id=1, pad_token_id=1)
    letters = ["<unk>", "<eos>", *"abcdefghijklmnopqrstuvwxyz0123"]
    words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )
    drift = [1e-2 * torch.randn_like(p) for p in model.parameters()]
    for step in steps:
        directory = root / f"checkpoint-{step}"
        model.save_pretrained(directory, **save_options)
        tokenizer.save_pretrained(directory)
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), drift, strict=True):
                parameter.add_(move + 1e-3 * torch.randn_like(parameter))
    return root
