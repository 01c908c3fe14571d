import math

import numpy as np
import pytest

from ckptlin.errors import CkptlinError, GradingError, InputError
from ckptlin.grading import Completion, open_grader
from ckptlin.grading.function import FunctionGrader
from ckptlin.problems import Problem

PROBLEM = Problem("1+1?", "2", id="p7")


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """Put a module of reward functions where Python finds it."""
    (tmp_path / "my_rewards.py").write_text(
        "def has_answer(completion, problem):\n"
        "    return 1.0 if problem.answer in completion else 0.25\n\n"
        "def broken(completion, problem):\n"
        "    return {}['reward']\n\n"
        "WEIGHT = 3\n\n"
        "class Rewards:\n"
        "    @staticmethod\n"
        "    def none(completion, problem):\n"
        "        return 0\n"
    )
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_is_found_by_its_place_and_gives_the_scores(rewards):
    with open_grader("my_rewards:has_answer") as grader:
        grader.check([Problem("a problem without an answer")])
        given = [Completion("it is 2", True), Completion("it is 3", False)]
        assert grader.grade(given, [PROBLEM] * 2) == [1.0, 0.25]
        assert grader.name == "my_rewards:has_answer"
        assert grader.notes == []
    assert open_grader("my_rewards:Rewards.none").grade([Completion("", True)], [PROBLEM]) == [0.0]
    assert open_grader("function", function="my_rewards:has_answer").name == "my_rewards:has_answer"


@pytest.mark.parametrize("score", [1, 0, 0.5, np.float32(0.5), np.int64(1)])
def test_every_number_from_0_to_1_is_a_score(score):
    (given,) = FunctionGrader(lambda completion, problem: score).grade([Completion("", True)], [PROBLEM])
    assert type(given) is float
    assert given == score


@pytest.mark.parametrize(
    "score", [None, True, np.True_, math.nan, -0.1, 1.5, math.inf, "1", [1.0], 1j, np.array(1.0)]
)
def test_what_is_no_score_is_refused_by_the_name_of_function_and_problem(score):
    grader = FunctionGrader(lambda completion, problem: score, name="mine")
    with pytest.raises(GradingError) as caught:
        grader.grade([Completion("", True)], [PROBLEM])
    assert str(caught.value) == (
        f"the reward function mine returned {score!r} for problem p7; it must return a number from 0 to 1"
    )
    assert isinstance(caught.value, CkptlinError)
    assert isinstance(caught.value, ValueError)


def test_a_long_result_is_cut_short():
    with pytest.raises(GradingError, match=r"returned '1{56}\.\.\. for"):
        FunctionGrader(lambda completion, problem: "1" * 1000).grade([Completion("", True)], [PROBLEM])


def test_a_function_that_raises_is_named_with_the_problem(rewards):
    with pytest.raises(
        GradingError, match=r"my_rewards:broken raised KeyError: 'reward' for problem p7"
    ) as caught:
        open_grader("my_rewards:broken").grade([Completion("", True)], [PROBLEM])
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_rewards:absent", "the module my_rewards has no absent"),
        ("my_rewards:WEIGHT", "is a int, no function"),
        ("no_such_module:score", "there is no module no_such_module to take"),
        ("my_rewards:", "names no function; write package.module:function"),
        ("./my_rewards.py:score", "names no function"),
        ("broken_rewards:score", "importing broken_rewards .* raised ZeroDivisionError"),
    ],
)
def test_a_place_without_a_function_is_refused(rewards, place, message):
    with pytest.raises(InputError, match=message):
        open_grader(place)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(InputError, match="must be callable, but 7 is not"):
        FunctionGrader(7)
