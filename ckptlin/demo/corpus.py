"""The demo's text: sums of one-digit numbers with their running totals, and a tokenizer of single characters.

``3+7+5+9+2=`` is answered by ``10;15;24;26#``: each total is the one before it and one more digit, so that a
model of two layers can learn it within a minute, and a little training more makes it a little better.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CHARACTERS", "END", "EncodedProblems", "Problem", "build_tokenizer", "draw_problems", "encode"]

END = "#"
_PAD = "<pad>"
CHARACTERS = (_PAD, END, *"0123456789", "+", "=", ";")
_IGNORED = -100  # what transformers leaves out of a loss


@dataclass(frozen=True, slots=True)
class Problem:
    """A sum to be worked out.

    Examples
    --------
    >>> problem = Problem((3, 7, 5, 9, 2))
    >>> problem.prompt, problem.answer
    ('3+7+5+9+2=', '10;15;24;26#')
    """

    digits: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return "+".join(map(str, self.digits)) + "="

    @property
    def answer(self) -> str:
        """What it should write: the running totals, and the end."""
        return ";".join(str(sum(self.digits[:n])) for n in range(2, len(self.digits) + 1)) + END


@dataclass(frozen=True)
class EncodedProblems:
    """Problems as a model takes them; a dataset for ``transformers.Trainer``.

    Attributes
    ----------
    input_ids : numpy.ndarray
        ``(num_problems, length) int64``, prompt and answer, padded at the end.
    labels : numpy.ndarray
        ``(num_problems, length) int64``: the answers' tokens; what is not scored is -100.
    """

    input_ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def draw_problems(num_problems: int, *, num_terms: int, seed: int) -> list[Problem]:
    """Draw different problems at random; the same arguments give the same ones.

    Examples
    --------
    >>> draw_problems(2, num_terms=3, seed=0) == draw_problems(2, num_terms=3, seed=0)
    True
    """
    codes = np.random.default_rng(seed).choice(10**num_terms, num_problems, replace=False)
    places = 10 ** np.arange(num_terms)[::-1]
    digits = codes[:, None] // places % 10
    return [Problem(tuple(row)) for row in digits.tolist()]


def build_tokenizer() -> Any:
    """Build the tokenizer, one token a character, as a ``transformers.PreTrainedTokenizerFast``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({character: i for i, character in enumerate(CHARACTERS)}, _PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=END)


def encode(problems: list[Problem], tokenizer: Any) -> EncodedProblems:
    """Encode problems, all to the length of the longest that their number of terms allows."""
    num_terms = len(problems[0].digits)
    longest = Problem((9,) * num_terms)
    length = len(longest.prompt + longest.answer)
    texts = [problem.prompt + problem.answer for problem in problems]
    ids = np.array(tokenizer(texts, padding="max_length", max_length=length)["input_ids"], np.int64)
    positions = np.arange(length)
    starts = np.array([len(problem.prompt) for problem in problems])[:, None]
    ends = np.array([len(text) for text in texts])[:, None]
    return EncodedProblems(ids, np.where((positions >= starts) & (positions < ends), ids, _IGNORED))
