"""What a task is: data, how they are put to a model, how answers are graded, and how they are sampled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptlin.errors import InputError
from ckptlin.evaluate.sampling import Sampling
from ckptlin.grading import Grader, open_grader
from ckptlin.problems import Problem, PromptTemplate, get_template, load_problems
from ckptlin.problems.data_sets import get_data_set
from ckptlin.problems.window import Window

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """Problems that a model is asked, and what becomes of its answers.

    Attributes
    ----------
    name : str
        What it is called in results.
    source : str
        Where its problems come from, as `load_problems` takes it.
    template : str
        Prompt template, by name or as a text with ``{problem}``.
    grader : str
        By name, or ``package.module:function``.
    grader_parameters : mapping of str to Any
    sampling : Sampling
        Where nothing else is asked for; by default the paper's.
    description : str
        One line for the user.
    data_set : str, optional
        Of which public data set these are the problems, in its own fields; see `ckptlin.problems.data_sets`.
    split : str, optional
    columns : mapping of str to str
        Names of the source's columns by ours.
    limit : int, optional
        Only the first so many problems, of those in the window.
    window : Window, optional
        Only problems of this time.
    """

    name: str
    source: str
    template: str = "boxed"
    grader: str = "math"
    grader_parameters: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    description: str = ""
    data_set: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        get_template(self.template)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"a limit of {self.limit} leaves no problem of {self.name}; give at least 1")
        if self.data_set is not None:
            get_data_set(self.data_set).source_of(split=self.split)

    @property
    def prompt_template(self) -> PromptTemplate:
        """How a problem is put to a model; one for a chat goes through the tokenizer's chat template."""
        return get_template(self.template)

    def open_grader(self) -> Grader:
        """Open its grader; use it in a ``with`` statement.

        Raises
        ------
        SelectionError
            If there is no such grader or parameter.
        MissingExtraError
            If a package that it needs is not installed.
        """
        return open_grader(self.grader, **self.grader_parameters)

    def load(self) -> tuple[Problem, ...]:
        """Load its problems, in the order of their source; each can be put to a model, and graded.

        Raises
        ------
        InputError
            If the source cannot be read, is empty, has a malformed row or two of one id, or a problem lacks its
            answer, its tests, or its date where there is a window.
        SelectionError
            If the source has no such split or column.
        MissingExtraError
            If a package that is needed is not installed.
        """
        if self.data_set is not None:
            problems = get_data_set(self.data_set).load(
                data=self.source, split=self.split, columns=self.columns, limit=self.limit, window=self.window
            )
        else:
            problems = load_problems(
                self.source,
                split=self.split,
                columns=self.columns,
                limit=self.limit,
                keep=None if self.window is None else self.window.holds,
            )
        template = self.prompt_template
        for problem in problems:
            template.prompt(problem)
        with self.open_grader() as grader:
            grader.check(problems)
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Return as plain data what its results depend on."""
        template = self.prompt_template
        return {
            "name": self.name,
            "source": self.source,
            "data_set": self.data_set,
            "split": self.split,
            "columns": dict(self.columns),
            "limit": self.limit,
            "window": None if self.window is None else self.window.to_list(),
            "template": {"name": template.name, "text": template.text, "chat": template.chat},
            "grader": self.grader,
            "grader_parameters": dict(self.grader_parameters),
        }
