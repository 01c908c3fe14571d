"""Answers in mathematics, compared by Math-Verify in processes of their own."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, get_args

from ckptlin.errors import InputError, MissingExtraError
from ckptlin.grading.boxes import Several, boxed_answer, last_expression
from ckptlin.grading.grader import Completion, check_answers, check_lengths
from ckptlin.grading.math_answers import normal_form, surely_differ
from ckptlin.grading.workers import Failure, WorkerPool, available_processors
from ckptlin.memory import format_bytes, parse_bytes
from ckptlin.problems.problem import Problem

__all__ = ["MathGrader", "NoBox"]

NoBox = Literal["wrong", "last-expression"]
_MOST_WORKERS = 4


class MathGrader:
    r"""Score 1 where the last ``\boxed{}`` holds the answer, 0 elsewhere.

    Parameters
    ----------
    several : {"joined", "last"}
        What becomes of several boxes, see `ckptlin.grading.boxes.boxed_answer`.
    no_box : {"wrong", "last-expression"}
        What becomes of a completion without a box.
    require_finished : bool
        Whether a completion that the limit of its length has cut off is wrong whatever it holds.
    time_limit_s : float
        Processor time of one comparison, rounded up to whole seconds of its process; what takes longer is
        killed and wrong, and is counted.  It does not run on a busy machine's account: only after four times
        as long, and ten seconds, does the clock decide.
    memory : str or int
        Address space of each process, in bytes or as ``"2GiB"``.
    num_workers : int, optional
        Processes; by default one for each processor, at most four.

    Raises
    ------
    MissingExtraError
        If Math-Verify is not installed.
    InputError
        If a parameter makes no sense.
    """

    name = "math"

    def __init__(
        self,
        *,
        several: Several = "joined",
        no_box: NoBox = "wrong",
        require_finished: bool = False,
        time_limit_s: float = 5.0,
        memory: str | int = "4GiB",
        num_workers: int | None = None,
    ) -> None:
        for parameter, value, allowed in (("several", several, Several), ("no_box", no_box, NoBox)):
            if value not in get_args(allowed):
                raise InputError(
                    f"{parameter} of the grader math is {value!r}; choose {' or '.join(get_args(allowed))}"
                )
        if not 0 < time_limit_s <= 3600:
            raise InputError(f"the time limit of the grader math is {time_limit_s} s; give 0 to 3600")
        workers = min(available_processors(), _MOST_WORKERS) if num_workers is None else num_workers
        if workers < 1:
            raise InputError(f"the grader math needs at least one process, not {workers}")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError('the grader math needs Math-Verify; pip install "ckptlin[eval]"')
        self._several: Several = several
        self._no_box: NoBox = no_box
        self._require_finished = require_finished
        self._time_limit_s = time_limit_s
        self._memory_bytes = parse_bytes(memory) if isinstance(memory, str) else memory
        self._pool = WorkerPool(
            "ckptlin.grading.math_worker",
            [str(time_limit_s), str(self._memory_bytes)],
            num_workers=workers,
            wall_s=4 * time_limit_s + 10,
        )
        self._counts: Counter[str] = Counter()
        self._hopeless: set[str] = set()  # normal forms of answers that could not be compared once

    @property
    def notes(self) -> list[str]:
        """How many answers could not be compared, and count as wrong, or in a vote as answers of their own."""
        total = self._counts["graded"]
        said = {
            "timed out": f"took longer than {self._time_limit_s:g} s to compare",
            "failed": f"needed more than {format_bytes(self._memory_bytes)} to compare, or nested too deeply",
            "died": "ended the process that compared them",
        }
        notes = [
            f"{self._counts[kind]:,} of {total:,} answers {what}; they count as wrong"
            for kind, what in said.items()
            if self._counts[kind]
        ]
        if self._counts["apart"]:
            notes.append(
                f"{self._counts['apart']:,} pairs of wrong answers could not be compared with each other; in a "
                "vote they count as different"
            )
        return notes

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `InputError` if a problem has no answer."""
        check_answers(problems, self.name)

    def grade(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
        """Return 1 or 0 for each completion; each different answer to a problem is compared once."""
        check_lengths(completions, problems)
        check_answers(problems, self.name)
        pairs = [
            (problem.answer or "", self._answer_of(completion))
            for completion, problem in zip(completions, problems, strict=True)
        ]
        verdicts: dict[tuple[str, str], bool | str] = {}
        for gold, answer in pairs:
            if answer is not None and gold.strip() and gold.strip() == answer.strip():
                verdicts[gold, answer] = True
        asked = [
            pair
            for pair in dict.fromkeys((gold, answer) for gold, answer in pairs if answer is not None)
            if pair not in verdicts
        ]
        replies = self._pool.ask([{"gold": gold, "answer": answer} for gold, answer in asked])
        for pair, reply in zip(asked, replies, strict=True):
            if isinstance(reply, Failure):
                verdicts[pair] = reply.kind
            else:
                verdicts[pair] = "failed" if "failed" in reply else bool(reply["same"])
        scores = []
        for gold, answer in pairs:
            verdict = answer is not None and verdicts[gold, answer]
            self._counts["graded"] += 1
            if answer is not None and isinstance(verdict, str):
                self._hopeless.add(normal_form(answer))
                self._counts[verdict] += 1
            scores.append(float(verdict is True))
        return scores

    def answers(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[str | None]:
        """Return what each completion answers, in normal form; None if it has no answer, or an empty one."""
        check_lengths(completions, problems)
        given = map(self._answer_of, completions)
        return [None if answer is None else normal_form(answer) or None for answer in given]

    def agree(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Compare answers with each other by Math-Verify, where that can be of use."""
        asked = [
            pair
            for pair in dict.fromkeys(pairs)
            if not surely_differ(*pair) and self._hopeless.isdisjoint(pair)
        ]
        replies = self._pool.ask([{"gold": first, "answer": second} for first, second in asked])
        same: dict[tuple[str, str], bool] = {}
        for pair, reply in zip(asked, replies, strict=True):
            compared = not isinstance(reply, Failure) and "failed" not in reply
            same[pair] = compared and bool(reply["same"])
            self._counts["apart"] += not compared
        return [same.get(pair, False) for pair in pairs]

    def _answer_of(self, completion: Completion) -> str | None:
        if self._require_finished and not completion.finished:
            return None
        answer = boxed_answer(completion.text, several=self._several)
        if answer is None and self._no_box == "last-expression":
            return last_expression(completion.text)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._pool.close()
