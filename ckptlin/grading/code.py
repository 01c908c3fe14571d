"""Programs, graded by the tests that they pass in the sandbox."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self, get_args

from ckptlin.errors import InputError
from ckptlin.grading.code_tests import CodeTest, is_expected_output, is_expected_value, read_tests
from ckptlin.grading.grader import Completion, check_lengths
from ckptlin.grading.sandbox import Limits, Sandbox
from ckptlin.grading.workers import available_processors
from ckptlin.memory import format_bytes, parse_bytes
from ckptlin.problems.problem import Problem

__all__ = ["CodeGrader", "code_of"]

Share = Literal["all", "share"]
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n", re.MULTILINE)
_RESULT = "result.json"

# What LeetCode gives without an import, and LiveCodeBench's functional problems take for granted.
_PRELUDE = """\
import sys
sys.setrecursionlimit(50000)
import bisect, collections, functools, heapq, itertools, json, math, operator, random, re, string
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, combinations, permutations, product
from math import ceil, comb, floor, gcd, inf, isqrt, lcm, sqrt
from typing import Any, Dict, List, Optional, Set, Tuple, Union
"""
# It knows the arguments, and not what must come out.
_DRIVER = """
import json as _json
with open("call.json") as _file:
    _call = _json.load(_file)
_owner = Solution() if "Solution" in globals() else None
_name = _call["function"]
_function = getattr(_owner, _name) if hasattr(_owner, _name) else globals()[_name]
_result = _function(*_call["arguments"])
with open("result.json", "w") as _file:
    _json.dump(_result, _file)
"""


class CodeGrader:
    """Score 1 where the completion's last block of code passes all tests, 0 elsewhere.

    Tests are read by `ckptlin.grading.code_tests`.  Each runs in a process of its own in
    `ckptlin.grading.sandbox`, until one fails.

    Parameters
    ----------
    score : {"all", "share"}
        Whether all tests must be passed, or the score is the share of them that is.
    time_limit_s : int
        Processor time of each test.
    wall_limit_s : float, optional
        Time of each test; by default four times the processor time, since the machine may be busy.
    memory : str or int
        Address space of each process, in bytes or as ``"1GiB"``.
    processes : int
        Processes and threads at a time.
    num_workers : int, optional
        Programs that run at a time; by default one for each processor.
    namespaces : bool
        Whether to ask the kernel for namespaces.
    """

    name = "code"

    def __init__(
        self,
        *,
        score: Share = "all",
        time_limit_s: int = 6,
        wall_limit_s: float | None = None,
        memory: str | int = "1GiB",
        processes: int = 16,
        num_workers: int | None = None,
        namespaces: bool = True,
    ) -> None:
        if score not in get_args(Share):
            raise InputError(f"score of the grader code is {score!r}; choose {' or '.join(get_args(Share))}")
        self._share = score == "share"
        self._num_workers = available_processors() if num_workers is None else num_workers
        if self._num_workers < 1:
            raise InputError(f"the grader code needs at least one process, not {self._num_workers}")
        self._sandbox = Sandbox(
            Limits(
                cpu_s=time_limit_s,
                wall_s=4.0 * time_limit_s if wall_limit_s is None else wall_limit_s,
                memory_bytes=parse_bytes(memory) if isinstance(memory, str) else memory,
                processes=processes,
            ),
            namespaces=namespaces,
        )
        self._counts: Counter[str] = Counter()

    @property
    def held(self) -> dict[str, str]:
        """How the programs are held, once one has run; see `ckptlin.grading.sandbox.Sandbox.held`."""
        return self._sandbox.held

    @property
    def notes(self) -> list[str]:
        """How many programs met a limit or ended in an error, and what the sandbox cannot do here."""
        total = self._counts["graded"]
        limits = self._sandbox.limits
        said = {
            "no code": "have no block of code",
            "timed out": f"ran longer than {limits.cpu_s} s of processor time, or {limits.wall_s:g} s",
            "out of memory": f"needed more than {format_bytes(limits.memory_bytes)}",
            "error": "ended in an error",
        }
        notes = [
            f"{self._counts[kind]:,} of {total:,} programs {what}; they count as wrong"
            for kind, what in said.items()
            if self._counts[kind]
        ]
        held = self.held
        if held and held["network"] != "none":
            notes.append(
                "the kernel permits no namespaces here: programs have no socket module, but could reach the "
                "network by other ways, and could write wherever their user may"
            )
        elif held and held["files"] != "read-only":
            notes.append("the kernel does not protect files here: programs could write wherever their user may")
        if held and "reads as root" in held["user"]:
            notes.append("Python lies where only root can read it, so that programs can read all files")
        return notes

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `InputError` if the tests of a problem are not there, or cannot be read."""
        for problem in problems:
            read_tests(problem)

    def grade(self, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
        """Return the score of each completion; the same program for the same problem runs once."""
        check_lengths(completions, problems)
        tests = {key: read_tests(problem) for key, problem in {id(p): p for p in problems}.items()}
        pairs = [
            (code_of(completion.text), id(problem))
            for completion, problem in zip(completions, problems, strict=True)
        ]
        programs = list(dict.fromkeys((code, key) for code, key in pairs if code is not None))
        with ThreadPoolExecutor(self._num_workers) as executor:
            results = dict(
                zip(
                    programs,
                    executor.map(lambda program: self._pass(program[0], tests[program[1]]), programs),
                    strict=True,
                )
            )
        scores = []
        for code, key in pairs:
            score, outcome = (0.0, "no code") if code is None else results[code, key]
            self._counts.update(("graded", outcome))
            scores.append(score)
        return scores

    def _pass(self, code: str, tests: tuple[CodeTest, ...]) -> tuple[float, str]:
        """Run the tests; return the score and how the first that was not passed ended."""
        passed, first = 0, "passed"
        for test in tests:
            outcome = self._run(code, test)
            if outcome == "passed":
                passed += 1
                continue
            first = outcome if first == "passed" else first
            if not self._share:
                return 0.0, first
        return passed / len(tests), first

    def _run(self, code: str, test: CodeTest) -> str:
        if test.function is None:
            ran = self._sandbox.run(code, stdin=test.given)
            right = ran.outcome == "ok" and is_expected_output(ran.stdout, test.expected)
        else:
            call = json.dumps({"function": test.function, "arguments": test.given})
            future = "".join(_FUTURE.findall(code))
            program = f"{future}{_PRELUDE}\n{_FUTURE.sub('', code)}\n{_DRIVER}"
            ran = self._sandbox.run(program, files={"call.json": call}, take=(_RESULT,))
            right = ran.outcome == "ok" and _returned(ran.files.get(_RESULT), test.expected)
        if ran.outcome != "ok":
            return ran.outcome
        return "passed" if right else "wrong"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def code_of(text: str) -> str | None:
    r"""Return the last block of code between fences; None if there is none, or it is cut off.

    Examples
    --------
    >>> code_of("First\n```\nx\n```\nthen\n```python\nprint(1)\n```\n"), code_of("```python\nprint(1)")
    ('print(1)\n', None)
    """
    found: list[tuple[str, str]] = _FENCE.findall(text)
    if not found:
        return None
    python = [code for language, code in found if language.lower() in ("python", "python3", "py")]
    return (python or [code for _, code in found])[-1]


def _returned(content: bytes | None, expected: object) -> bool:
    if content is None:
        return False
    try:
        return is_expected_value(json.loads(content), expected)
    except (ValueError, RecursionError):
        return False
