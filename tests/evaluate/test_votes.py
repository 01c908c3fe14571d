import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.evaluate.votes import vote_classes
from ckptlin.grading import Completion, Voter, open_grader
from ckptlin.grading.math_answers import normal_form
from ckptlin.problems import Problem


def classes_of(grader, rows, golds):
    """Grade completions (texts; None: cut off without an answer) and return their classes."""
    said = [[Completion("cut o" if text is None else text, text is not None) for text in row] for row in rows]
    problems = [Problem("?", gold, id=str(i)) for i, gold in enumerate(golds)]
    flat = [problem for problem, row in zip(problems, said, strict=True) for _ in row]
    scores = iter(grader.grade([c for row in said for c in row], flat))
    return [
        found.tolist()
        for found in vote_classes(grader, said, problems, [[next(scores) for _ in row] for row in said])
    ]


@pytest.fixture(scope="module")
def math():
    pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")
    with open_grader("math", num_workers=1) as opened:
        yield opened


def boxed(*answers):
    return [None if answer is None else rf"\boxed{{{answer}}}" for answer in answers]


def test_right_answers_are_one_class_and_wrong_ones_agree_by_their_value(math):
    rows = [
        boxed("0.5", r"\frac{1}{2}", r"\frac 34", "0.75", "3/4", "7", None, "1/2"),
        boxed("x+1", "1+x", "2+x", r"\text{Monday}", "monday", "1,000", "1000.0"),
    ]
    found = classes_of(math, rows, [r"\frac12", "5"])
    assert found == [[0, 0, 1, 1, 1, 2, -1, 0], [0, 0, 1, 2, 2, 3, 3]]


def test_classes_do_not_depend_on_the_order_of_the_answers(math):
    texts = boxed("x+1", "3", "0.75", "1+x", "3.0", r"\frac{3}{4}", "5", None)
    forwards, backwards = (np.array(classes_of(math, [row], ["5"])[0]) for row in (texts, texts[::-1]))
    backwards = backwards[::-1]
    assert np.array_equal(forwards[:, None] == forwards, backwards[:, None] == backwards)


def test_of_several_writings_one_alone_is_compared():
    pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")
    with open_grader("math", num_workers=1) as grader:
        classes_of(grader, [boxed(*(str(i) for i in range(64)))] * 3, ["64"] * 3)
        calls = []
        ask, grader._pool.ask = grader._pool.ask, lambda requests: calls.extend(requests) or ask(requests)
        # Numbers differ without a look at them.
        found = classes_of(grader, [boxed(*(str(i) for i in range(64)))], ["0"])
        assert found == [list(range(64))]
        assert all(call["gold"] == "0" for call in calls)


def test_an_answer_that_hangs_is_not_compared_again_and_stays_alone():
    pytest.importorskip("math_verify", reason="compares answers; the extra `eval` has it")
    hanging = "9^{9^{9^{9}}}"
    with open_grader("math", num_workers=1, time_limit_s=1, memory="1GiB") as grader:
        found = classes_of(grader, [boxed(hanging, "x", hanging, "y", "x")], ["5"])
        assert found == [[0, 1, 0, 2, 1]]
        (note,) = grader.notes
        assert note.startswith("2 of 5 answers")
        # Without grading first it is found out by the comparison, and said.
        assert grader.agree([("8^{9^{9^{9}}}", r"\sqrt{2}")]) == [False]
        assert "1 pairs of wrong answers could not be compared with each other" in grader.notes[-1]


def test_exact_compares_whole_texts_and_no_end_is_no_answer():
    with open_grader("exact") as grader:
        found = classes_of(grader, [["2", "3", "3 ", None, "3", ""]], ["2"])
        assert found == [[0, 1, 2, -1, 1, -1]]
    with open_grader("exact", strip=True) as grader:
        assert classes_of(grader, [["3", "3 ", " "]], ["2"]) == [[0, 0, -1]]


@pytest.mark.parametrize("name", ["code", "function"])
def test_programs_and_functions_have_no_vote(name):
    parameters = {"function": lambda completion, problem: 1.0} if name == "function" else {}
    with open_grader(name, **parameters) as grader:
        assert not isinstance(grader, Voter)
        assert vote_classes(grader, [[Completion("", True)]], [Problem("?")], np.ones((1, 1))) is None


def test_shapes_that_do_not_fit_are_refused():
    with (
        open_grader("exact") as grader,
        pytest.raises(InputError, match="2 scores do not fit 1 completions of 1"),
    ):
        vote_classes(grader, [[Completion("", True)]], [Problem("?", "1")], np.ones((1, 2)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("007", "7"),
        ("-0.50", "-0.5"),
        ("+3.0", "3"),
        ("-0", "0"),
        (r"\text{East}", "east"),
        (r"12\,345", "12345"),
    ],
)
def test_writings_of_one_answer_have_one_normal_form_where_no_formula_has_to_be_read(first, second):
    assert normal_form(first) == normal_form(second)


@given(
    st.lists(
        st.lists(st.sampled_from(["2", "3", "3 ", "4", "", None]), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_of_whole_texts_two_agree_if_and_only_if_both_are_right_or_they_are_the_same(rows):
    with open_grader("exact") as grader:
        found = classes_of(grader, rows, ["2"] * len(rows))
    for texts, classes in zip(rows, found, strict=True):
        for one, first in zip(texts, classes, strict=True):
            assert (first == -1) == (one in ("", None))
            for other, second in zip(texts, classes, strict=True):
                assert (first == second) == (one == other or {one, other} <= {"", None})
