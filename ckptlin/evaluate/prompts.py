"""Prompts as token ids, and token ids as answers: what a model's tokenizer and configuration decide."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.logits import register_pairs
from ckptlin.problems import Problem, PromptTemplate

__all__ = ["ModelText"]


class ModelText:
    """Encodes prompts for a model and decodes its answers.

    Parameters
    ----------
    directory : Path
        Of the model.

    Attributes
    ----------
    stop_ids : tuple of int
        Tokens that end an answer: the tokenizer's, and those of the generation configuration.
    vocab_size : int
        Of the model, which may have more rows than the tokenizer has tokens.
    context : int or None
        Tokens that the model was made for; None where its configuration does not say.

    Raises
    ------
    InputError
        If there is no tokenizer or configuration, or nothing that ends an answer.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        register_pairs()
        self._directory = directory
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory)
            config = AutoConfig.from_pretrained(directory).get_text_config()
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            raise InputError(
                f"the tokenizer or configuration of {directory} cannot be loaded: {first}"
            ) from error
        ends = {self._tokenizer.eos_token_id}
        if (directory / "generation_config.json").is_file():
            named = GenerationConfig.from_pretrained(directory).eos_token_id
            ends |= set(named) if isinstance(named, list) else {named}
        self.stop_ids = tuple(sorted(ends - {None}))
        if not self.stop_ids:
            raise InputError(
                f"the tokenizer of {directory} has no end-of-sequence token, so that no answer would end; set "
                "eos_token in tokenizer_config.json"
            )
        self.vocab_size = int(config.vocab_size)
        self.context: int | None = getattr(config, "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary."""
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()

    def encode(self, problems: Sequence[Problem], template: PromptTemplate) -> list[tuple[int, ...]]:
        """Return the token ids of each problem's prompt.

        Raises
        ------
        InputError
            If the prompt is for a chat and the tokenizer has no chat template, or an id is outside of the
            model's vocabulary.
        """
        if template.chat and getattr(self._tokenizer, "chat_template", None) is None:
            raise InputError(
                f"the prompt {template.name} is a chat message, but the tokenizer of {self._directory} has no "
                "chat template; give --no-chat to put the prompt as plain text"
            )
        encoded = []
        for problem in problems:
            prompt = template.prompt(problem)
            ids: Any = (
                self._tokenizer(prompt)["input_ids"]
                if isinstance(prompt, str)
                else self._tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            )
            if not ids:
                raise InputError(f"the prompt of problem {problem.id} has no tokens in {self._directory}")
            if max(ids) >= self.vocab_size:
                raise InputError(
                    f"the prompt of problem {problem.id} has the token {max(ids)}, but the vocabulary of "
                    f"{self._directory} ends at {self.vocab_size - 1}; its tokenizer is another model's"
                )
            encoded.append(tuple(ids))
        return encoded

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of answers, without special tokens."""
        texts: list[str] = self._tokenizer.batch_decode(
            [list(answer) for answer in ids], skip_special_tokens=True
        )
        return texts
