import pickle

import pytest

from ckptlin.errors import InputError
from ckptlin.problems import Problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problem": ""}, "a problem must have a text"),
        ({"problem": None}, "a problem must have a text"),
        ({"problem": "1+1=", "answer": 2}, "the answer of it is 2; it must be text"),
        ({"problem": "1+1=", "solution": ["2"], "id": "7"}, "the solution of problem 7 is"),
    ],
)
def test_what_is_no_problem_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Problem(**fields)


def test_a_problem_is_a_value_that_can_be_hashed_and_sent_to_a_process():
    problem = Problem("1+1=", "2", id="a", extra={"level": [1, 2]})
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert hash(problem) == hash(Problem("1+1=", "2", id="a", extra={"level": [1, 2]}))
    assert problem != Problem("1+1=", "2", id="a")


def test_as_plain_data_no_field_covers_another():
    problem = Problem("1+1=", "2", id="a", extra={"answer": "two", "level": 1})
    assert problem.to_dict() == {
        "id": "a",
        "problem": "1+1=",
        "answer": "2",
        "source_answer": "two",
        "level": 1,
    }
