"""What a checkpoint's directory says of its model: configuration, context, tokenizer."""

import os
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.quiet import quiet_transformers

__all__ = ["check_context", "load_config", "load_tokenizer"]


def load_tokenizer(directory: Path) -> Any:
    """Return a model's tokenizer; None if there is none."""
    if not any("token" in path.name or "vocab" in path.name for path in directory.iterdir()):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(os.fspath(directory))
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def load_config(directory: Path, location: str) -> Any:
    """Return the configuration of a model's language part; InputError if transformers refuses it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(directory).get_text_config()
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"transformers refuses the config.json of {location}: {reason}") from error


def check_context(directory: Path, longest: int, location: str) -> None:
    """Refuse responses that are longer than a model's context; InputError."""
    text = load_config(directory, location)
    positions = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # YaRN and its like stretch the positions that the model was made with; others name what they reach.
    if positions is not None and longest > int(positions * max(1.0, float(rope.get("factor") or 1.0))):
        raise InputError(
            f"the longest prompt with its response has {longest:,} tokens, and the model of {location} takes "
            f"{positions:,}; leave long responses out"
        )
