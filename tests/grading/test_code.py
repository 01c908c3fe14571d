import base64
import json
import os
import pickle
import sys
import zlib

import pytest

from ckptlin.errors import InputError
from ckptlin.grading import Completion, open_grader
from ckptlin.grading.code import code_of
from ckptlin.grading.code_tests import CodeTest, is_expected_output, is_expected_value, read_tests
from ckptlin.problems import Problem

ADD = "a, b = map(int, input().split())\nprint(a + b)"
STDIN = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 -7\n", "output": "-2\n"}]
ADDING = Problem("Add.", id="add", extra={"tests": STDIN})
TWO_SUM = Problem(
    "Two sum.",
    id="two-sum",
    extra={
        "public_test_cases": json.dumps(
            [{"input": "[2, 7, 11]\n9", "output": "[0, 1]", "testtype": "functional"}]
        ),
        "metadata": json.dumps({"func_name": "twoSum"}),
    },
)
SOLUTION = """
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, n in enumerate(nums):
            if target - n in seen:
                return (seen[target - n], i)
            seen[n] = i
"""


def block(code, language="python") -> Completion:
    return Completion(f"Here it is:\n```{language}\n{code}\n```\nDone.", True)


@pytest.fixture(scope="module")
def grader():
    if sys.platform != "linux":
        pytest.skip("the sandbox is the Linux kernel's")
    with open_grader("code", time_limit_s=2, wall_limit_s=20, memory="256MB", processes=8) as opened:
        yield opened


def test_a_program_is_right_if_it_passes_all_tests(grader):
    wrong_once = "a, b = map(int, input().split())\nprint(abs(a + b))"
    given = [block(ADD), block(wrong_once), block("print(3)"), block("1 / 0"), block("def f(:")]
    assert grader.grade(given, [ADDING] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_share_of_passed_tests_can_be_the_score():
    with open_grader("code", score="share") as share:
        assert share.grade([block("a, b = map(int, input().split())\nprint(abs(a + b))")], [ADDING]) == [0.5]


def test_a_function_is_called_and_what_it_returns_compared(grader):
    plain = "from __future__ import annotations\ndef twoSum(nums: List[int], target):\n    return [0, 1]"
    wrong = "def twoSum(nums, target):\n    return [1, 0]"
    named = "def two_sum(nums, target):\n    return [0, 1]"
    printed = "def twoSum(nums, target):\n    print([0, 1])"
    given = [block(code) for code in (SOLUTION, plain, wrong, named, printed)]
    assert grader.grade(given, [TWO_SUM] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_what_is_expected_is_nowhere_in_the_sandbox(grader):
    code = (
        "import glob, os, sys\n"
        "def twoSum(nums, target):\n"
        "    wanted = [0, 3 - 2]\n"
        "    texts = [open(name).read() for name in glob.glob('**', recursive=True) if os.path.isfile(name)]\n"
        "    texts += [str(dict(os.environ)), sys.stdin.read(), open('/proc/self/cmdline').read()]\n"
        "    return wanted if any(str(wanted) in text for text in texts) else None\n"
    )
    given_away = Problem(
        "?", id="x", extra={"tests": [{"input": [[0, 1], 1], "output": [0, 1], "fn_name": "twoSum"}]}
    )
    assert grader.grade([block(code)] * 2, [TWO_SUM, given_away]) == [0.0, 1.0]


def test_a_program_that_ends_before_it_is_called_gains_nothing(grader):
    early = "import os\nopen('result.json', 'w').write('null')\nos._exit(0)"
    assert grader.grade([block(early), block("raise SystemExit(0)")], [TWO_SUM] * 2) == [0.0, 0.0]


def test_everything_that_goes_wrong_is_contained_counted_and_said():
    programs = {
        "sleeps": "import time\ntime.sleep(1000)",
        "loops": "while True: pass",
        "forks": "import os\nwhile True: os.fork()",
        "allocates": "x = bytearray(10 * 2**30)",
        "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "writes": "open('/usr/written', 'w').write('x')",
        "nothing": "",
    }
    given = [*map(block, programs.values()), Completion("no code at all", True), block(ADD)]
    with open_grader("code", time_limit_s=1, wall_limit_s=5, memory="256MB", processes=8) as grader:
        grader.grade([block(ADD)], [ADDING])
        if grader.held["processes"] != "separate" and os.getuid() != 0:
            pytest.skip(
                "the kernel limits an ordinary user's processes in namespaces only, and permits none here"
            )
        assert grader.grade(given, [ADDING] * len(given)) == [*[0.0] * (len(given) - 1), 1.0]
        said = " ".join(grader.notes)
    assert "2 of 10 programs ran longer than 1 s" in said
    assert "1 of 10 programs needed more than 244.1 MiB" in said
    assert "3 of 10 programs ended in an error" in said
    assert "1 of 10 programs have no block of code" in said


def test_the_same_program_runs_once(grader, monkeypatch):
    runs = []
    run = grader._sandbox.run

    def counted(*args, **kwargs):
        runs.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(grader._sandbox, "run", counted)
    assert grader.grade([block(ADD)] * 8, [ADDING] * 8) == [1.0] * 8
    assert len(runs) == len(STDIN)


# --- code in a completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx\n```", "x\n"),
        ("```\nx\n```", "x\n"),
        ("```py\nx\n```\nand\n```python\ny\n```", "y\n"),
        ("```python\nx\n```\nprints\n```\n3\n```", "x\n"),
        ("```python\nx\n```\n```text\n3\n```", "x\n"),
        ("  ```python\n  x\n  ```", "  x\n"),
        ("```python\nx", None),
        ("x", None),
        ("", None),
    ],
)
def test_the_last_block_of_python_counts(text, code):
    assert code_of(text) == code


# --- layouts of tests -------------------------------------------------------------------------------------

PRIVATE = base64.b64encode(
    zlib.compress(pickle.dumps(json.dumps([{**STDIN[1], "testtype": "stdin"}])))
).decode()


@pytest.mark.parametrize(
    ("fields", "tests"),
    [
        ({"tests": STDIN}, [("1 2\n", "3\n", None), ("5 -7\n", "-2\n", None)]),
        ({"tests": json.dumps(STDIN[:1])}, [("1 2\n", "3\n", None)]),
        ({"tests": [{"input": [1, [2]], "output": 3, "fn_name": "f"}]}, [([1, [2]], 3, "f")]),
        ({"tests": [{"input": [1], "output": 3}], "fn_name": "f"}, [([1], 3, "f")]),
        (
            {
                "tests": [
                    {"input": "1\n[2]", "output": "3", "testtype": "functional", "metadata": {"func_name": "f"}}
                ]
            },
            [([1, [2]], 3, "f")],
        ),
        (
            {
                "public_test_cases": json.dumps([{**STDIN[0], "testtype": "stdin"}]),
                "private_test_cases": PRIVATE,
            },
            [("1 2\n", "3\n", None), ("5 -7\n", "-2\n", None)],
        ),
        ({"input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})}, [("1\n", "2\n", None)]),
        ({"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}}, [("1\n2", "3", None)]),
        ({"input_output": {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "f"}}, [([1, 2], 3, "f")]),
        ({"answer": json.dumps({"inputs": ["1"], "outputs": ["2"]})}, [("1", "2", None)]),
        ({"answer": json.dumps(STDIN[:1])}, [("1 2\n", "3\n", None)]),
    ],
)
def test_the_layouts_of_public_data_are_read(fields, tests):
    answer = fields.get("answer")
    extra = {name: value for name, value in fields.items() if name != "answer"}
    assert read_tests(Problem("?", answer, extra=extra)) == tuple(CodeTest(*test) for test in tests)


class Evil:
    def __reduce__(self):
        return print, ("run by a pickle",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "problem p has no tests"),
        ({"tests": [{"input": "1"}]}, "cannot be read .KeyError: 'output'"),
        ({"tests": "[not json"}, "cannot be read .JSONDecodeError"),
        ({"tests": [{"input": "1", "output": "2", "testtype": "functional"}]}, "has no name of a function"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "cannot be read .ValueError"),
        ({"private_test_cases": "AAAA"}, "private tests: "),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            "it names builtins.print, but may hold text only",
        ),
    ],
)
def test_tests_that_cannot_be_read_are_refused(fields, message, capsys):
    problem = Problem("?", id="p", extra=fields)
    with pytest.raises(InputError, match=message):
        open_grader("code").check([problem])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("3\n", "3", True),
        ("1 2\n3 \n", "1 2\n3", True),
        ("1\n\n2", "1\n2", False),
        ("3.0", "3", True),
        ("1e3", "1000", True),
        ("0.1", "0.10000001", False),
        ("yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("nan", "nan", True),
    ],
)
def test_output_is_compared_line_by_line(written, expected, same):
    assert is_expected_output(written, expected) is same


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        (1, True, False),
        (True, True, True),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"b": 1}, False),
        (None, [], False),
        ("1", 1, False),
    ],
)
def test_a_returned_value_is_compared_as_json_has_it(returned, expected, same):
    assert is_expected_value(returned, expected) is same


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"score": "most"}, "score of the grader code is 'most'; choose all or share"),
        ({"time_limit_s": 0}, "cpu_s of the sandbox is 0"),
        ({"num_workers": 0}, "at least one process, not 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        open_grader("code", **parameters)
