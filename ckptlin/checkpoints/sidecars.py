"""The files beside the weights that make a checkpoint complete: configuration, tokenizer, chat template.

What belongs to the training (``trainer_state.json``, optimizer states, ``training_args.bin``) and code
(``modeling_*.py``) is left where it is: the first says nothing about a model at another step, and the second
would be run by whoever loads the copy.
"""

from collections.abc import Iterable, Mapping

from ckptlin.checkpoints.locations import Location, list_matches

__all__ = ["SIDECAR_DIRECTORY", "SIDECAR_PATTERNS", "find_sidecars"]

SIDECAR_PATTERNS: tuple[str, ...] = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*",
    "tekken.json",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
SIDECAR_DIRECTORY = "additional_chat_templates"


def find_sidecars(directories: Iterable[Location]) -> Mapping[str, Location]:
    """Find the sidecar files of a model, by name; where two directories hold one, the first one's is taken.

    Files of ``additional_chat_templates`` are named with it: ``additional_chat_templates/tools.jinja``.
    """
    found: dict[str, Location] = {}
    for directory in directories:
        paths = [path for pattern in SIDECAR_PATTERNS for path in list_matches(directory, pattern)]
        for path in paths:
            if path.is_file():
                found.setdefault(path.name, path)
        for path in list_matches(directory / SIDECAR_DIRECTORY, "*.jinja"):
            found.setdefault(f"{SIDECAR_DIRECTORY}/{path.name}", path)
    return found
