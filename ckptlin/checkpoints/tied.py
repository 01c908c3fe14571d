"""Tied tensors: names that stand for another tensor, and so are missing from a checkpoint's files.

safetensors refuses to store shared memory twice, so that a model whose output head is its input embedding is
saved with one of the two names.  Which name it was is read from the file's metadata or follows from the
configuration.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["find_tied"]

_HEAD = "lm_head.weight"
_EMBEDDINGS = (
    "embed_tokens.weight",  # Llama, Qwen, Gemma, Mistral, Phi and their kin
    "wte.weight",  # GPT-2
    "word_embeddings.weight",  # BLOOM, Falcon
    "embed_in.weight",  # GPT-NeoX
    "tok_embeddings.weight",  # Llama in Meta's own names, InternLM 2
)


def find_tied(
    tensors: Iterable[str], metadata: Mapping[str, str], config: Mapping[str, Any] | None
) -> Mapping[str, str]:
    """Find the names that have no bytes of their own, and the tensors that they stand for.

    Parameters
    ----------
    tensors : iterable of str
        Names that are in the files.
    metadata : mapping of str to str
        ``__metadata__`` of the files.  ``safetensors.torch.save_model`` records each name that it dropped
        with the name that it kept.
    config : mapping, or None
        The parsed ``config.json``.  If it, or its ``text_config``, says ``tie_word_embeddings``,
        ``lm_head.weight`` stands for the one input embedding there is.  transformers 4 left the entry out
        when it was true by default, so for a causal language model its absence counts as true.

    Examples
    --------
    >>> find_tied(["model.embed_tokens.weight"], {"format": "pt"}, {"tie_word_embeddings": True})
    {'lm_head.weight': 'model.embed_tokens.weight'}
    """
    names = set(tensors)
    tied = {alias: kept for alias, kept in metadata.items() if kept in names and alias not in names}
    if config is not None and _ties_head(config) and not any(_is(name, _HEAD) for name in names | tied.keys()):
        embeddings = [name for name in names if any(_is(name, embedding) for embedding in _EMBEDDINGS)]
        if len(embeddings) == 1:
            tied[_HEAD] = embeddings[0]
    return tied


def _is(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _ties_head(config: Mapping[str, Any]) -> bool:
    text_config = config.get("text_config")
    said = [
        part["tie_word_embeddings"]
        for part in (config, text_config)
        if isinstance(part, Mapping) and "tie_word_embeddings" in part
    ]
    if said:
        return any(value is True for value in said)
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(
        isinstance(name, str) and name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
        for name in architectures
    )
