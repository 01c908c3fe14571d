"""Tests of programs, in the layouts of the public data sets.

A test gives a program its input, or calls a function of it, and knows what must come out.  Read are

- ckptlin's own and DeepCoder's: ``tests``, a list of objects with ``input`` and ``output``, and ``fn_name``
  (of each, of ``metadata``, or of the problem) where a function is called;
- LiveCodeBench's: ``public_test_cases`` and ``private_test_cases``, ``metadata`` with ``func_name``;
- APPS's and PRIME's: ``input_output``, an object with ``inputs``, ``outputs`` and ``fn_name``;

each also as the JSON text of it, and the first and last also as the problem's answer.
"""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ckptlin.errors import InputError
from ckptlin.problems.problem import Problem

__all__ = ["CodeTest", "is_expected_output", "is_expected_value", "read_tests"]


@dataclass(frozen=True)
class CodeTest:
    """What goes into a program, and what must come out.

    Attributes
    ----------
    given : str or list
        What is on stdin; or the arguments of the function.
    expected : Any
        What must be on stdout; or what the function must return.
    function : str or None
        Name of the function, or of the method of ``Solution``; None for stdin.
    """

    given: Any
    expected: Any
    function: str | None = None


def read_tests(problem: Problem) -> tuple[CodeTest, ...]:
    """Read the tests of a problem.

    Raises
    ------
    InputError
        If it has none, or such as cannot be read; it names the problem.
    """
    try:
        tests = _read(problem)
    except (ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the tests of problem {problem.id} cannot be read ({type(error).__name__}: {error}); expected "
            "tests with input and output, or the layouts of LiveCodeBench or APPS"
        ) from error
    if not tests:
        raise InputError(
            f"problem {problem.id} has no tests, which the grader code runs; expected one of the fields tests, "
            "input_output and public_test_cases"
        )
    return tests


def is_expected_output(written: str, expected: str) -> bool:
    """Compare what a program wrote: line by line, without outer white space, and numbers by their value.

    Examples
    --------
    >>> is_expected_output("1 2.50\\n", "1.0 2.5"), is_expected_output("1\\n2", "1 2")
    (True, False)
    """
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (written, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def is_expected_value(returned: Any, expected: Any) -> bool:
    """Compare what a function returned, as JSON has it, with what it must.

    Examples
    --------
    >>> is_expected_value([1, [2]], [1, [2]]), is_expected_value(1, True), is_expected_value(1.0, 1)
    (True, False, True)
    """
    if isinstance(returned, bool) != isinstance(expected, bool):
        return False
    if isinstance(returned, list) and isinstance(expected, list):
        return len(returned) == len(expected) and all(map(is_expected_value, returned, expected))
    if isinstance(returned, dict) and isinstance(expected, dict):
        return returned.keys() == expected.keys() and all(
            is_expected_value(value, expected[key]) for key, value in returned.items()
        )
    return bool(returned == expected)


def _read(problem: Problem) -> tuple[CodeTest, ...]:
    extra = problem.extra
    name = extra.get("fn_name") or _object(extra.get("metadata")).get("func_name")
    if extra.get("tests"):
        return _listed(extra["tests"], name)
    if extra.get("input_output"):
        return _columns(_parsed(extra["input_output"]), name)
    cases = [*_cases(extra.get("public_test_cases")), *_cases(extra.get("private_test_cases"))]
    if cases:
        return _listed(cases, name)
    if problem.answer and problem.answer.lstrip().startswith(("[", "{")):
        parsed = json.loads(problem.answer)
        return _listed(parsed, name) if isinstance(parsed, list) else _columns(parsed, name)
    return ()


def _listed(tests: Any, name: str | None) -> tuple[CodeTest, ...]:
    found = []
    for test in _parsed(tests):
        function = test.get("fn_name") or _object(test.get("metadata")).get("func_name") or name
        kind = test.get("testtype") or ("functional" if function else "stdin")
        if kind != "functional":
            found.append(CodeTest(_text(test["input"]), _text(test["output"])))
        elif function:
            found.append(_called(function, test["input"], test["output"]))
        else:
            raise ValueError("a functional test has no name of a function")
    return tuple(found)


def _called(function: str, given: Any, expected: Any) -> CodeTest:
    """LiveCodeBench writes an argument of JSON a line, and JSON that must come out; others write the values."""
    arguments = [json.loads(line) for line in given.split("\n")] if isinstance(given, str) else given
    if not isinstance(arguments, list):
        raise TypeError("the input of a functional test must be a list of arguments")
    return CodeTest(arguments, json.loads(expected) if isinstance(expected, str) else expected, function)


def _columns(columns: Any, name: str | None) -> tuple[CodeTest, ...]:
    function = columns.get("fn_name") or name
    pairs = zip(columns["inputs"], columns["outputs"], strict=True)
    if function is None:
        return tuple(CodeTest(_text(given), _text(expected)) for given, expected in pairs)
    # APPS wraps what must come out in a list of one.
    return tuple(
        CodeTest(
            given, expected[0] if isinstance(expected, list) and len(expected) == 1 else expected, function
        )
        for given, expected in pairs
    )


def _cases(cases: Any) -> list[Any]:
    """Read LiveCodeBench's cases; the private ones are JSON in a pickle in zlib in base64."""
    if not cases:
        return []
    if isinstance(cases, str) and not cases.lstrip().startswith("["):
        try:
            cases = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(cases)))).load()
        except (pickle.UnpicklingError, zlib.error) as error:
            raise ValueError(f"private tests: {error}") from error
    return list(_parsed(cases))


class _TextOnly(pickle.Unpickler):
    """A pickle can run code; this one may hold text alone."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, but may hold text only")


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _object(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json.loads(value)
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    """Return stdin or stdout as text; some data list its lines."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def _same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    mine, right = ours.split(), theirs.split()
    return len(mine) == len(right) and all(map(_same_word, mine, right))


def _same_word(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        return Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False
