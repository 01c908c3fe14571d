r"""The answer in a completion: what stands in its last ``\boxed{}``."""

import re
from typing import Literal

__all__ = ["Several", "boxed_answer", "boxes", "last_expression"]

Several = Literal["joined", "last"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
# What may stand between boxes that are one answer together: "\boxed{1}$ and $\boxed{2}".
_JOIN = re.compile(
    r"(?:\s|[$,;&]|\\[()\[\],;! ]|\\q?quad|\\(?:text|mbox|textrm)\{\s*(?:,?\s*(?:and|or))?\s*\}"
    r"|\b(?:and|or)\b)*"
)


# A formula between dollars or brackets, or a number.
_EXPRESSION = re.compile(
    r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|(?<![\w.])([-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)",
    re.DOTALL,
)
_TAIL = 2_000  # characters in which a last expression is looked for


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Find the closed boxes of a text, with where each starts and ends; inner ones are part of theirs.

    Examples
    --------
    >>> [content for _, _, content in boxes(r"\boxed{\frac{1}{2}}, \boxed 7 and \boxed{8")]
    ['\\frac{1}{2}', '7']
    """
    found = []
    position = 0
    while match := _BOX.search(text, position):
        start = match.end()
        if start < len(text) and text[start] == "{":
            end = _closing(text, start)
            if end is None:
                # Cut off inside: it is no box, but one may stand inside it.
                position = start + 1
                continue
            found.append((match.start(), end + 1, text[start + 1 : end]))
            position = end + 1
        else:
            # TeX boxes one character, if there is no brace; a space must separate it from the command.
            token = re.compile(r"[^\s\\{}$]").match(text, start)
            if token and start > match.start() + len(match.group().rstrip()):
                found.append((match.start(), token.end(), token.group()))
            position = start
    return found


def boxed_answer(text: str, *, several: Several = "joined") -> str | None:
    r"""Return the answer that a completion gives in a box; None if it has none.

    The last box counts.  Of several, those directly before it that only a comma, "and" or "or" separates from
    it belong to it (``joined``), as a list without repetitions: who gives two answers has not given the right
    one, and who gives the two solutions in two boxes has given both.  With ``last`` the others never count.

    Examples
    --------
    >>> boxed_answer(r"So \boxed{3}. No: $x = \boxed{1}$ or $\boxed{2}$."), boxed_answer("3")
    ('1, 2', None)
    >>> boxed_answer(r"$\boxed{1}$ or $\boxed{2}$", several="last")
    '2'
    """
    found = boxes(text)
    if not found:
        return None
    start, _, content = found[-1]
    contents = [content]
    if several == "joined":
        for earlier_start, earlier_end, earlier in reversed(found[:-1]):
            between = text[earlier_end:start]
            # Without a word or a comma between them they are two boxes by chance.
            if not _JOIN.fullmatch(between) or not re.search(r",|;|and|or", between):
                break
            contents.insert(0, earlier)
            start = earlier_start
    return ", ".join(dict.fromkeys(contents))


def last_expression(text: str) -> str | None:
    r"""Return the last formula or number of a text; None if it has none.

    Examples
    --------
    >>> last_expression(r"Thus $x = \frac{1}{2}$."), last_expression("It is 4, or 4.0!"), last_expression("no")
    ('x = \\frac{1}{2}', '4.0', None)
    """
    found = list(_EXPRESSION.finditer(text[-_TAIL:]))
    if not found:
        return None
    return next(group for group in found[-1].groups() if group is not None).rstrip(",")


def _closing(text: str, start: int) -> int | None:
    """Return where the brace that opens at ``start`` is closed; escaped braces do not count."""
    depth = 0
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return position
        position += 1
    return None
