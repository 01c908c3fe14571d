import pytest

from ckptlin.errors import InputError
from ckptlin.grading import Completion, open_grader
from ckptlin.problems import Problem, make_sum

PROBLEM = make_sum((3, 7, 5, 9, 2))


@pytest.mark.parametrize(
    ("text", "finished", "score"),
    [
        ("10;15;24;26", True, 1.0),
        ("10;15;24;26", False, 0.0),
        ("10;15;24;27", True, 0.0),
        ("10;15;24;26;", True, 0.0),
        (" 10;15;24;26", True, 0.0),
        ("10;15;24", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_only_the_whole_answer_with_its_end_is_right(text, finished, score):
    with open_grader("exact") as grader:
        assert grader.grade([Completion(text, finished)], [PROBLEM]) == [score]
        assert grader.notes == []


def test_white_space_and_the_end_can_be_left_out_of_account():
    given = [Completion(" 10;15;24;26\n", True), Completion("10;15;24;26", False)]
    assert open_grader("exact", strip=True).grade(given, [PROBLEM] * 2) == [1.0, 0.0]
    assert open_grader("exact", require_finished=False).grade(given, [PROBLEM] * 2) == [0.0, 1.0]


def test_a_problem_without_an_answer_is_refused():
    problems = [PROBLEM, Problem("?", id="7")]
    message = "1 of 2 problems have none, the first of them problem 7"
    with pytest.raises(InputError, match=message):
        open_grader("exact").check(problems)
    with pytest.raises(InputError, match=message):
        open_grader("exact").grade([Completion("", True)] * 2, problems)


def test_each_completion_needs_its_problem():
    with pytest.raises(InputError, match="2 completions were given with 1 problems"):
        open_grader("exact").grade([Completion("", True)] * 2, [PROBLEM])
