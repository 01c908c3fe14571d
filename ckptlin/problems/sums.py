"""The demo's task: sums of one-digit numbers with their running totals, and a tokenizer of single characters.

``3+7+5+9+2=`` is answered by ``10;15;24;26#``: each total is the one before it and one more digit, so that a
model of two layers can learn it within a minute, and a little training more makes it a little better.  ``#``
ends the sequence: whether it was written is what a completion's ``finished`` says, and no answer holds it.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems.problem import Problem

__all__ = ["CHARACTERS", "END", "build_tokenizer", "draw_sums", "in_test_split", "make_sum"]

END = "#"
_PAD = "<pad>"
CHARACTERS = (_PAD, END, *"0123456789", "+", "=", ";")
_TEST_SHARE = 10  # one sum in so many
_MOST_TERMS = 7  # 10 million sums, in 80 MB while they are put in order


def make_sum(digits: Sequence[int]) -> Problem:
    """Make the problem of adding digits up.

    Examples
    --------
    >>> problem = make_sum((3, 7, 5, 9, 2))
    >>> problem.problem, problem.answer
    ('3+7+5+9+2=', '10;15;24;26')
    """
    text = "+".join(map(str, digits))
    answer = ";".join(str(sum(digits[:n])) for n in range(2, len(digits) + 1))
    return Problem(f"{text}=", answer, solution=answer, id=text)


def in_test_split(text: str) -> bool:
    """Tell whether a problem of this text is for testing alone.

    It depends on the text and on nothing else: whatever seed a training set was drawn with, it has no problem
    of the test split.

    Examples
    --------
    >>> in_test_split("3+7+5+9+2="), in_test_split("8+7+7+2+6=")
    (False, True)
    """
    return int.from_bytes(sha256(text.encode()).digest()[:8]) % _TEST_SHARE == 0


def draw_sums(
    num_problems: int | None = None,
    *,
    split: str | None = None,
    num_terms: int = 5,
    seed: int = 0,
) -> tuple[Problem, ...]:
    """Draw different sums at random; the same arguments give the same ones.

    Parameters
    ----------
    num_problems : int, optional
        By default all there are.
    split : {"train", "test"}, optional
        By default both, about nine of ten being of ``train``.
    num_terms : int
        Digits in a sum, 2 to 7.
    seed : int

    Raises
    ------
    InputError
        If there are not so many, or no such number of terms.
    SelectionError
        If there is no such split.

    Examples
    --------
    >>> draw_sums(2, num_terms=3, seed=0) == draw_sums(2, num_terms=3, seed=0)
    True
    """
    import numpy as np

    if not 2 <= num_terms <= _MOST_TERMS:
        raise InputError(f"sums have 2 to {_MOST_TERMS} terms, not {num_terms}")
    if split not in (None, "train", "test"):
        raise SelectionError(f"sums have no split {split!r}; they have train and test")
    num_sums = 10**num_terms
    if num_problems is not None and not 1 <= num_problems <= num_sums:
        raise InputError(f"{num_problems:,} sums of {num_terms} digits were asked for; give 1 to {num_sums:,}")
    random = np.random.default_rng(seed)
    if split is None and num_problems is not None:
        codes = random.choice(num_sums, num_problems, replace=False)
    else:
        codes = random.permutation(num_sums)
    problems = []
    for code in codes.tolist():
        problem = make_sum([int(digit) for digit in f"{code:0{num_terms}d}"])
        if split is None or in_test_split(problem.problem) == (split == "test"):
            problems.append(problem)
        if len(problems) == num_problems:
            break
    if num_problems is not None and len(problems) < num_problems:
        raise InputError(
            f"{num_problems:,} sums of {num_terms} digits were asked for, but the split {split} has "
            f"{len(problems):,}; ask for fewer, or for more digits"
        )
    return tuple(problems)


def build_tokenizer() -> Any:
    """Build the tokenizer, one token a character, as a ``transformers.PreTrainedTokenizerFast``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({character: i for i, character in enumerate(CHARACTERS)}, _PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=END)
