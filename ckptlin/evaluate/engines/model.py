"""What both engines ask of a model before they load it: its configuration, its tensors, its context."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptlin.checkpoints import HuggingFaceCheckpoint
from ckptlin.errors import InputError
from ckptlin.logits import MODEL_TYPE, register_pairs
from ckptlin.quiet import quiet_transformers

__all__ = ["ModelFacts", "first_line", "read_model"]

# They differ between checkpoints of one architecture: `use_cache` is off in what a trainer has saved, and no
# engine reads it.  The dtype is told apart on its own.
_INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
_OF_A_PAIR = ("base", "second", "alpha", "steps", "target")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading it.

    Attributes
    ----------
    source : str
        Its directory, or its name on the hub.
    is_local : bool
        Whether it is a directory.
    dtype : str
        That it is computed in; ``auto`` where its configuration names none.
    vocab_size : int
    config : Any
        The configuration of transformers.
    architecture : dict
        The configuration without what checkpoints of one architecture differ in.
    shapes : dict, optional
        Of each tensor on disk; None for a model on the hub.
    """

    source: str
    is_local: bool
    dtype: str
    vocab_size: int
    config: Any = field(repr=False)
    architecture: dict[str, Any] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] | None = field(repr=False)

    def fits(self, other: "ModelFacts") -> bool:
        """Whether the weights of the other model can take the place of this one's, each of them."""
        return (
            self.is_local
            and other.is_local
            and (self.architecture, self.shapes, self.dtype) == (other.architecture, other.shapes, other.dtype)
        )

    def lacks(self, other: "ModelFacts") -> list[str]:
        """Return the tensors that a model of the same architecture has not, and this one has.

        An output embedding that is tied to the input embedding may be saved or not.
        """
        if self.shapes is None or other.shapes is None or self.architecture != other.architecture:
            return []
        lost = self.shapes.keys() - other.shapes.keys()
        if self.architecture.get("tie_word_embeddings"):
            lost = {name for name in lost if not name.endswith("lm_head.weight")}
        return sorted(lost)


def read_model(model: str | Path, *, dtype: str, max_model_len: int) -> ModelFacts:
    """Read a model's configuration and, of a directory, the headers of its weights.

    Parameters
    ----------
    model : str or Path
        A directory with safetensors, or a name on the hub.
    dtype : str
        To compute in; ``auto`` for the model's own.
    max_model_len : int
        Tokens that it must take.

    Raises
    ------
    InputError
        If there is no such model, it generates no text, or its context is shorter.
    CheckpointError
        If weights are missing, cut short or unreadable; the message names the file.
    """
    from transformers import AutoConfig

    register_pairs()
    source, is_local = os.fspath(model), Path(model).exists()
    shapes = None
    if is_local:
        with HuggingFaceCheckpoint(source) as checkpoint:
            if checkpoint.config is None:
                raise InputError(f"model {source} has no config.json; an engine needs it to build the model")
            shapes = {name: spec.shape for name, spec in checkpoint.tensors.items()}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {source} cannot be loaded: {first_line(error)}") from error
    text = config.get_text_config()
    vocab_size = getattr(text, "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise InputError(f"model {source} is a {config.model_type}, which has no vocabulary to generate from")
    _check_context(source, text, max_model_len)
    # Pairs of checkpoints of one architecture differ in what they are made of and in α, as models in weights.
    incidental = (*_INCIDENTAL, *_OF_A_PAIR) if config.model_type == MODEL_TYPE else _INCIDENTAL
    plain = {name: value for name, value in config.to_dict().items() if name not in incidental}
    return ModelFacts(
        source, is_local, _dtype(config, text, dtype), vocab_size, config, architecture=plain, shapes=shapes
    )


def first_line(error: BaseException) -> str:
    """Return what an error says first, for a message of one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _dtype(config: Any, text: Any, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    own = config.dtype if config.dtype is not None else text.dtype
    return "auto" if own is None else str(own).removeprefix("torch.")


def _check_context(source: str, text: Any, max_model_len: int) -> None:
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # YaRN and its like stretch the positions that the model was made with; others name what they reach.
    limit = int(positions * max(1.0, float(rope.get("factor") or 1.0)))
    if max_model_len > limit:
        raise InputError(
            f"model {source} takes {limit} tokens, but the longest prompt with its answer would have "
            f"{max_model_len}; ask for shorter answers"
        )
