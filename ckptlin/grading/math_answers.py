r"""Whether two answers in mathematics are the same: Math-Verify, and rules for what it takes for formulas.

Math-Verify reads letters as a product of variables, in any order: for it *east* is *seat*, and *1 000* is 1·0.
Texts and numbers with spaces are therefore compared here; formulas by Math-Verify alone.
"""

import logging
import re
from fractions import Fraction
from itertools import product
from typing import Any

__all__ = ["normal_form", "plain_number", "same_answer", "same_text", "surely_differ", "text_of"]

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_LETTERS = re.compile(r"[^\W\d_][^\W\d_'’.\- ]*(?:[ '’.\-]+[^\W\d_]+)*\.?")
_SEPARATOR = r"(?:,|\{,\}|\\,|\\ |~|\\;|\\!,|\s)"
_FRACTION = re.compile(r"([-+]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)")
_GROUPED = re.compile(rf"([-+]?\d{{1,3}})((?:{_SEPARATOR}\d{{3}})+)(\.\d+)?")
_AROUND = re.compile(r"^(?:\s|~|\\[ ,;:!])+|(?:\s|~|(?<!\\)\\[ ,;:!])+$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*percent\s*\}|percent)\s*$")
# What Math-Verify does not know, and what it does.
_USUAL = ((r"\varnothing", r"\emptyset"), ("{.}", "."), ("−", "-"))
_SMALL = 1e-2
# Words that are formulas.
_MATHEMATICAL = frozenset({"pi", "infinity", "infty", "sqrt", "frac", "sin", "cos", "tan", "log", "exp"})


def same_answer(gold: str, answer: str) -> bool:
    r"""Tell whether an answer is the right one; this can take for ever, and memory without end.

    Parameters
    ----------
    gold : str
        The right answer, as LaTeX or text.
    answer : str
        What stands in the box.
    """
    gold, answer = _bare(gold), _bare(answer)
    if not gold or not answer:
        return False
    if gold == answer or _unwrapped(gold) == _unwrapped(answer):
        return True
    as_text = same_text(gold, answer)
    if as_text is not None:
        return as_text
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # It logs that it has no limit of time; the process has one.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    target = (LatexExtractionConfig(boxed_match_priority=0),)
    if all(_PERCENT.search(text) for text in (gold, answer)):
        gold, answer = (_PERCENT.sub("", text) for text in (gold, answer))
    right, given = (
        parse(rf"\boxed{{{plain_number(text)}}}", target, parsing_timeout=None) for text in (gold, answer)
    )
    # An interval may be given as an inequality, and the other way round.
    equal = verify(right, given, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(equal) and not any(_far_apart(*pair) for pair in product(right, given))


def _far_apart(right: Any, given: Any) -> bool:
    """Tell whether numbers differ that are the same to six decimals, which is as far as Math-Verify looks."""
    if not (getattr(right, "is_number", False) and getattr(given, "is_number", False)):
        return False
    try:
        first, second = complex(right), complex(given)
    except (TypeError, ValueError, OverflowError):
        return False
    return 0 < abs(first) < _SMALL and abs(first - second) > 1e-3 * abs(first)


def same_text(gold: str, answer: str) -> bool | None:
    r"""Compare answers that are words; None if the right answer is none, so that this does not decide.

    Examples
    --------
    >>> same_text(r"\text{Monday}", "monday"), same_text("east", "seat"), same_text("x+1", "1+x")
    (True, False, None)
    """
    word = text_of(gold)
    if word is None:
        return None
    return word == text_of(answer)


def text_of(answer: str) -> str | None:
    r"""Return the words of an answer in lower case; None if it is a formula.

    Words stand in ``\text{}`` or the like, or have three letters, and no sign but ``-``, ``'`` and ``.``.  A
    capital letter is one too, with or without parentheses: that of a choice.

    Examples
    --------
    >>> text_of(r"\text{(B)}"), text_of("the  East"), text_of("ab"), text_of(r"\text{ cm}"), text_of(r"\pi")
    ('b', 'the east', None, 'cm', None)
    """
    words = _unwrapped(answer)
    was_wrapped = _WRAPPED.search(answer) is not None
    choice = re.fullmatch(r"\(?([A-Z])\)?", words)
    if choice:
        return choice.group(1).lower()
    if not _LETTERS.fullmatch(words):
        return None
    words = words.rstrip(".").lower()
    if len(words) < (2 if was_wrapped else 3) or _MATHEMATICAL & set(words.split()):
        return None
    return words


def plain_number(answer: str) -> str:
    r"""Return a number as LaTeX has it, without the separators of its thousands; anything else as it is.

    Examples
    --------
    >>> plain_number("1 000"), plain_number(r"12{,}345.5"), plain_number("1, 000"), plain_number("(1,200)")
    ('1000', '12345.5', '1, 000', '(1,200)')
    >>> plain_number("1.5e-3")
    '1.5\\times10^{-3}'
    """
    scientific = _SCIENTIFIC.fullmatch(answer)
    if scientific:
        return rf"{scientific[1]}\times10^{{{int(scientific[2])}}}"
    match = _GROUPED.fullmatch(answer)
    if not match:
        return answer
    whole, rest, decimals = match.groups()
    return whole + re.sub(_SEPARATOR, "", rest) + (decimals or "")


def normal_form(answer: str) -> str:
    r"""Return an answer in a form that is the same for many writings of it, without Math-Verify.

    Examples
    --------
    >>> [normal_form(text) for text in (r"$1{,}000$", "1000.0", r"\text{ Monday }", "Monday.", r" \frac 1 2")]
    ['1000', '1000', 'monday', 'monday', '\\frac 1 2']
    """
    bare = _bare(answer)
    words = text_of(bare)
    if words is not None:
        return words
    number = plain_number(bare)
    return _decimal(number) or number


def surely_differ(first: str, second: str) -> bool:
    r"""Tell whether two different normal forms are other numbers, or one is words: no formula has to be read.

    Examples
    --------
    >>> surely_differ("12", "13"), surely_differ("monday", "12"), surely_differ("12", "6+6")
    (True, True, False)
    >>> surely_differ(r"\frac{3}{4}", "4/5"), surely_differ(r"\frac{3}{4}", "0.75")
    (True, False)
    """
    if text_of(first) is not None or text_of(second) is not None:
        return True
    if _decimal(first) is not None and _decimal(second) is not None:
        return True
    one, other = _fraction(first), _fraction(second)
    # What is rounded may still be meant to be the same.
    return one is not None and other is not None and abs(one - other) > abs(one) / 1000


def _fraction(answer: str) -> Fraction | None:
    """Return the value of a decimal or of a plain fraction; None for anything else."""
    match = _FRACTION.fullmatch(answer)
    if match:
        sign, above, below = match[1], match[2] or match[4], match[3] or match[5]
        return Fraction(int(above), int(below)) * (-1 if sign == "-" else 1) if int(below) else None
    decimal = _decimal(answer)
    return None if decimal is None else Fraction(decimal)


def _decimal(answer: str) -> str | None:
    """Return a plain decimal number without what does not change it; None if it is none."""
    if not re.fullmatch(r"[-+]?\d+(?:\.\d+)?", answer):
        return None
    whole, _, fraction = answer.lstrip("+-").partition(".")
    digits = (whole.lstrip("0") or "0") + (f".{fraction.rstrip('0')}" if fraction.rstrip("0") else "")
    return f"-{digits}" if answer.startswith("-") and digits != "0" else digits


def _unwrapped(answer: str) -> str:
    """Take the words out of ``\\text{}`` and the like."""
    return " ".join(_WRAPPED.sub(r" \1 ", answer).split())


def _bare(answer: str) -> str:
    """Take off what is around an answer and not of it: spaces, dollars, brackets of a display, a full stop."""
    for written, usual in _USUAL:
        answer = answer.replace(written, usual)
    before = None
    while answer != before:
        before = answer
        answer = _AROUND.sub("", answer)
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if answer.startswith(left) and answer.endswith(right) and len(answer) > len(left) + len(right):
                answer = answer[len(left) : -len(right)]
        if answer.endswith((".", ",", ";", ":")) and not answer.endswith(".."):
            answer = answer[:-1]
    return answer
