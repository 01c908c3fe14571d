"""Prompt templates: how a problem is put to a model."""

from dataclasses import dataclass

from ckptlin.errors import InputError
from ckptlin.problems.problem import Problem

__all__ = ["TEMPLATES", "PromptTemplate", "get_template"]

_FIELD = "{problem}"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    r"""A text around a problem, given to a model as it is or as a chat message.

    Attributes
    ----------
    name : str
        What it is called in records; the text itself for a template of a user's own.
    text : str
        With ``{problem}`` once, where the problem goes.  Other braces are left alone, so that LaTeX needs no
        doubled ones.
    chat : bool
        Whether the prompt is a message for the tokenizer's chat template.

    Examples
    --------
    >>> get_template(r"{problem} Answer in \boxed{}.").render(Problem("What is 1+1?"))
    'What is 1+1? Answer in \\boxed{}.'
    """

    name: str
    text: str
    chat: bool = False

    def __post_init__(self) -> None:
        if self.text.count(_FIELD) != 1:
            raise InputError(
                f"the prompt template {self.text!r} has {_FIELD} {self.text.count(_FIELD)} times; it must "
                "stand there once, where the problem goes"
            )

    def render(self, problem: Problem) -> str:
        """Return the text of the prompt.

        A problem that has the template's words already, as those of data prepared for verl, is left as it is.
        """
        before, _, after = self.text.partition(_FIELD)
        if (before or after) and problem.problem.startswith(before) and problem.problem.endswith(after):
            return problem.problem
        return f"{before}{problem.problem}{after}"

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Return the prompt as chat messages; those that came before in the data come before it."""
        earlier = [dict(message) for message in problem.extra.get("earlier_messages", ())]
        return [*earlier, {"role": "user", "content": self.render(problem)}]

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        """Return the prompt as trainers and engines take it: text, or chat messages if this is for a chat.

        Raises
        ------
        InputError
            If the problem comes with earlier messages, and this is not for a chat.
        """
        if self.chat:
            return self.messages(problem)
        if problem.extra.get("earlier_messages"):
            raise InputError(
                f"problem {problem.id} comes with earlier chat messages, which the plain text of the prompt "
                f"template {self.name} has no place for; use it as a chat"
            )
        return self.render(problem)


TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("plain", "{problem}"),
        # DeepScaleR's words, which the paper trains and evaluates with (arXiv 2601.04537).
        PromptTemplate(
            "boxed",
            "{problem} Let's think step by step and output the final answer within \\boxed{}.",
            chat=True,
        ),
        # The grader `code` takes the last block.
        PromptTemplate(
            "code",
            "Write a Python program that solves this problem.\n\n{problem}\n\nAnswer with the whole program in "
            "one block that begins with ```python and ends with ```.",
            chat=True,
        ),
    )
}


def get_template(name_or_text: str, *, chat: bool | None = None) -> PromptTemplate:
    """Look a template up by its name, or make one of a text with ``{problem}``.

    Parameters
    ----------
    name_or_text : str
    chat : bool, optional
        Whether the prompt is a chat message; by default as the named template has it, and not for a text.

    Raises
    ------
    InputError
        If it is neither a name nor a text with ``{problem}``.
    """
    template = TEMPLATES.get(name_or_text)
    if template is None:
        if _FIELD not in name_or_text:
            raise InputError(
                f"there is no prompt template {name_or_text!r}; choose {', '.join(sorted(TEMPLATES))}, or give "
                f"a text with {_FIELD}"
            )
        template = PromptTemplate(name_or_text, name_or_text)
    return template if chat is None else PromptTemplate(template.name, template.text, chat)
