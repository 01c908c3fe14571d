"""The public data sets that are known by name: where each is, and how a row of it becomes a problem.

Training, ``ckptlin data prepare`` and the tasks of evaluation read them here, and nowhere else.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptlin.errors import SelectionError
from ckptlin.problems.load import SUFFIXES, load_problems
from ckptlin.problems.problem import Problem
from ckptlin.problems.window import Window

__all__ = ["DATA_SETS", "DataSet", "get_data_set"]


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by name.

    Attributes
    ----------
    name : str
    source : str
        For `load_problems`: its name on the hub, or ``sums``.
    splits : tuple of str
        The first is taken where none is asked for.
    template : str
        The prompt template that its problems are put by.
    description : str
        One line for the user.
    read : callable
        Makes a row of the source, as `load_problems` reads it, a problem in our sense; one that is so already,
        as in a file that ``ckptlin data prepare`` has written, it leaves as it is.
    has_answer : callable
        Whether a problem can be graded.
    files : callable, optional
        Which files of the repository hold a configuration, where ``datasets`` cannot load it by its name.
    """

    name: str
    source: str
    splits: tuple[str, ...]
    template: str
    description: str
    read: Callable[[Problem], Problem] = lambda problem: problem
    has_answer: Callable[[Problem], bool] = lambda problem: problem.answer is not None
    files: Callable[[str], tuple[str, ...]] | None = None

    def source_of(self, *, data: str | Path | None = None, split: str | None = None) -> str:
        """Return the source in full: the file instead, if there is one, else the name with its split.

        Raises
        ------
        SelectionError
            If there is no such split.
        """
        if split is not None and split not in self.splits:
            raise SelectionError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        if data is not None:
            return str(data)
        return self.source if self.files is not None else f"{self.source}:{split or self.splits[0]}"

    def load(
        self,
        *,
        data: str | Path | None = None,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        limit: int | None = None,
        window: Window | None = None,
        seed: int = 0,
    ) -> tuple[Problem, ...]:
        """Load its problems, in the order of their source.

        Parameters
        ----------
        data : str or Path, optional
            The same data as a file, as a directory that holds the repository, or as another source.
        split : str, optional
        columns : mapping of str to str, optional
            Names of the source's columns by ours.
        limit : int, optional
            Only the first so many of those in the window.
        window : Window, optional
        seed : int
            Of the order of ``sums``.

        Raises
        ------
        SelectionError
            If there is no such split, configuration or column.
        InputError
            If the source cannot be read, or a problem has no date where a window is asked for.
        MissingExtraError
            If the package that reads the source is not installed.
        """
        source = self.source_of(data=data, split=split)
        files: Sequence[str] = ()
        if self.files is not None and not source.endswith(SUFFIXES):
            source, files = self._with_files(source, self.files)
        rows = load_problems(
            source,
            columns=columns,
            limit=limit,
            files=files,
            keep=None if window is None else window.holds,
            seed=seed,
        )
        return tuple(map(self.read, rows))

    def _with_files(self, source: str, files: Callable[[str], tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
        """Take the configuration off a source, and return the files that hold it."""
        repository, _, configuration = self.source.rpartition("/")
        if source == repository or Path(source).is_dir():
            return source, files(configuration)
        base, _, chosen = source.rpartition("/")
        if base == repository or Path(base).is_dir():
            return base, files(chosen)
        return source, ()


def get_data_set(name: str) -> DataSet:
    """Look a data set up.

    Raises
    ------
    SelectionError
        If there is none of that name.
    """
    if name not in DATA_SETS:
        raise SelectionError(f"there is no data set {name!r}; choose {', '.join(sorted(DATA_SETS))}")
    return DATA_SETS[name]


def _read_gsm8k(problem: Problem) -> Problem:
    """GSM8K's answer is a solution, and after ``####`` a number, with commas between its thousands."""
    solution, mark, number = (problem.answer or "").rpartition("####")
    answer = number.strip().replace(",", "")
    if not mark:
        # A number alone has been taken out of its solution already.
        return problem if re.fullmatch(r"[-+]?\$?\d*\.?\d+", answer) else replace(problem, answer=None)
    return replace(problem, answer=answer or None, solution=solution.strip() or None)


# What follows the problem in LiveCodeBench's own prompts, in words of ours.
_FROM_STDIN = (
    "The program reads its input from stdin and writes what is asked for to stdout, and nothing else. Do not "
    "run it on the examples."
)
_FROM_STARTER = "Begin with this code, and keep the names in it:\n```python\n{starter}\n```"
_RELEASE = re.compile(r"release_v(\d)|v(\d)(?:_v(\d))?")
_LAST_RELEASE = 6
_TESTS = ("tests", "input_output", "public_test_cases", "private_test_cases")


def _read_livecodebench(problem: Problem) -> Problem:
    """How a program gets its input stands in other fields of a row; a prompt has to say it."""
    starter = str(problem.extra.get("starter_code") or "").strip("\n")
    words = _FROM_STARTER.replace("{starter}", starter) if starter.strip() else _FROM_STDIN
    if problem.problem.endswith(words):
        return problem
    return replace(problem, problem=f"{problem.problem.rstrip()}\n\n{words}")


def _livecodebench_files(configuration: str) -> tuple[str, ...]:
    """Each release adds a file to those before it: ``release_v3`` has three, ``v2_v3`` the second and third."""
    match = _RELEASE.fullmatch(configuration)
    if configuration == "release_latest":
        first, last = 1, _LAST_RELEASE
    elif match and match[1]:
        first, last = 1, int(match[1])
    elif match:
        first, last = int(match[2]), int(match[3] or match[2])
    else:
        first = last = 0
    if not 1 <= first <= last <= _LAST_RELEASE:
        raise SelectionError(
            f"livecodebench has no release {configuration!r}; choose release_v1 to release_v{_LAST_RELEASE}, "
            "or what some of them added, as in v5 and v4_v5"
        )
    return tuple(f"test{number if number > 1 else ''}.jsonl" for number in range(first, last + 1))


DATA_SETS: Mapping[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "deepscaler",
            "agentica-org/DeepScaleR-Preview-Dataset",
            ("train",),
            "boxed",
            "what the paper trains on: 40 thousand problems of competitions",
        ),
        DataSet("aime24", "HuggingFaceH4/aime_2024", ("train",), "boxed", "AIME 2024, 30 problems"),
        DataSet("aime25", "math-ai/aime25", ("test",), "boxed", "AIME 2025, 30 problems"),
        DataSet("math500", "HuggingFaceH4/MATH-500", ("test",), "boxed", "500 problems of MATH"),
        DataSet(
            "gsm8k",
            "openai/gsm8k/main",
            ("test", "train"),
            "boxed",
            "word problems of grade school",
            _read_gsm8k,
        ),
        DataSet(
            "livecodebench",
            # `datasets` 4 and later do not run its loading script, which makes the releases of the files.
            "livecodebench/code_generation_lite/release_v5",
            ("test",),
            "code",
            "programs for the problems of contests, May 2023 to January 2025",
            _read_livecodebench,
            lambda problem: any(problem.extra.get(name) for name in _TESTS),
            _livecodebench_files,
        ),
        DataSet(
            "sums", "sums", ("train", "test"), "plain", "the demo's task, made on the spot: 100 thousand sums"
        ),
    )
}
