"""Two checkpoints of a tiny model with random weights, of any family, with heads that vLLM has kernels for."""

from pathlib import Path
from typing import Any

import torch

__all__ = ["FAMILIES", "VOCABULARY", "save_checkpoints", "save_model"]

VOCABULARY = 48
FAMILIES = ("qwen2-untied", "qwen2-tied", "qwen3-untied", "qwen3-tied", "llama-untied", "llama-tied")


def save_checkpoints(
    root: Path, family: str = "qwen2-untied", *, steps: tuple[int, int] = (10, 20), **config: Any
) -> tuple[Path, Path]:
    """Save ``checkpoint-N`` at two steps; weights of the second are some way from the first one's."""
    first, second = (
        save_model(root / f"checkpoint-{step}", family, moved=row, **config) for row, step in enumerate(steps)
    )
    return first, second


def save_model(
    directory: Path, family: str, *, moved: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """Save one model with a tokenizer of letters; ``moved`` says how often its weights have moved."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

    model_type, _, tying = family.partition("-")
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,  # so that logits lie apart, and argmax does not hang on the last bit
        "tie_word_embeddings": tying == "tied",
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings | config))
        with torch.no_grad():
            for turn in range(1, moved + 1):
                generator = torch.Generator().manual_seed(turn)
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += 0.3 * parameter.std(unbiased=False) * noise + 0.02 * noise
    model = model.to(dtype)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(directory)
    letters = ["<pad>", "<eos>", *(chr(code) for code in range(ord("A"), ord("A") + VOCABULARY - 2))]
    words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<pad>", pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(directory)
    return directory
