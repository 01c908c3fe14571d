"""Prompts as token ids, and token ids as answers: what a model's tokenizer and configuration decide."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ckptlin.errors import InputError
from ckptlin.logits import is_pair, register_pairs
from ckptlin.problems import Problem, PromptTemplate

__all__ = ["ModelText"]

_PROBE = "So 3 + 12 = 15, or x² − 1.\n"


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
            config = AutoConfig.from_pretrained(directory).get_text_config()
            # Which class reads a tokenizer depends on the kind of model; a pair is of its checkpoints' kind.
            options = {"config": config} if is_pair(directory) else {}
            self._tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            raise InputError(
                f"the tokenizer or configuration of {directory} cannot be loaded: {first}"
            ) from error
        # As transformers does: where there is no generation configuration, the model's own stands in for it.
        has_own = (directory / "generation_config.json").is_file()
        named = (GenerationConfig.from_pretrained(directory) if has_own else config).eos_token_id
        ends = {self._tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
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
        """Hash of what prompts depend on: vocabulary, chat template, and how a text is divided."""
        content = [
            sorted(self._tokenizer.get_vocab().items()),
            getattr(self._tokenizer, "chat_template", None),
            self._tokenizer(_PROBE)["input_ids"],
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

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
            try:
                ids = self._encode(template.prompt(problem))
            # A chat template raises what it likes, and tokenizers a TypeError for what is no Unicode.
            except Exception as error:
                raise InputError(
                    f"the prompt of problem {problem.id} cannot be encoded for {self._directory}: {error}"
                ) from error
            if not ids:
                raise InputError(f"the prompt of problem {problem.id} has no tokens in {self._directory}")
            if max(ids) >= self.vocab_size:
                raise InputError(
                    f"the prompt of problem {problem.id} has the token {max(ids)}, but the vocabulary of "
                    f"{self._directory} ends at {self.vocab_size - 1}; its tokenizer is another model's"
                )
            encoded.append(tuple(ids))
        return encoded

    def _encode(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Return a prompt's ids: with what begins a text once, and nothing that ends one."""
        if not isinstance(prompt, str):
            ids: list[int] = self._tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            return ids
        begins = self._tokenizer.bos_token
        has_begin = begins is not None and prompt.startswith(begins)
        ids = list(self._tokenizer(prompt, add_special_tokens=not has_begin)["input_ids"])
        without = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        # Tokenizers that end every text would end the prompt before it is answered.
        while ids and ids[-1] in self.stop_ids and (not without or without[-1] != ids[-1]):
            ids.pop()
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of answers, without special tokens."""
        texts: list[str] = self._tokenizer.batch_decode(
            # As it was written: some tokenizers would take spaces from before a comma.
            [list(answer) for answer in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return texts
