"""Models and tokenizers as the engine needs them: float32, with an end and a padding token."""

from pathlib import Path
from typing import Any

from ckptlin.errors import InputError

__all__ = ["load_model", "load_tokenizer", "save_start"]


def load_model(source: str | Path, **options: Any) -> Any:
    """Load a causal language model in float32.

    Raises
    ------
    InputError
        If there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"model `{source}` cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(source: str | Path) -> Any:
    """Load a tokenizer, padding on the left, and check that it has what training needs.

    Raises
    ------
    InputError
        If there is none, or it lacks an end-of-sequence or a padding token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of model `{source}` cannot be loaded: {_first_line(error)}") from error
    for name, what in (("eos_token", "end-of-sequence"), ("pad_token", "padding")):
        if getattr(tokenizer, f"{name}_id") is None:
            raise InputError(
                f"the tokenizer of model `{source}` has no {what} token; set {name} in tokenizer_config.json"
            )
    return tokenizer


def save_start(source: str | Path, path: Path) -> None:
    """Write a model and its tokenizer into a directory, as the checkpoint that training starts from."""
    load_model(source).save_pretrained(path)
    load_tokenizer(source).save_pretrained(path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
