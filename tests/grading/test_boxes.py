import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.grading.boxes import boxed_answer, boxes, last_expression


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{3}. \boxed{4}", "4"),
        (r"\boxed{3}\boxed{4}", "4"),
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{1}\text{ or }\boxed{2}", "1, 2"),
        (r"\boxed{1}, \quad \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"\boxed{9}. So \boxed{1} or \boxed{2}", "1, 2"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{\boxed{2}}", r"\boxed{2}"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{3 + \boxed{4}", "4"),
        (r"\boxed 7", "7"),
        (r"\boxed7", None),
        (r"\fbox{8}", "8"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"boxed{3}", None),
        ("", None),
    ],
)
def test_the_last_box_counts_with_those_that_belong_to_it(text, answer):
    assert boxed_answer(text) == answer


def test_without_joining_the_last_box_counts_alone():
    assert boxed_answer(r"$\boxed{1}$ and $\boxed{2}$", several="last") == "2"


inner = st.recursive(
    st.text(alphabet="ab1+\\,. ", max_size=5).map(lambda text: text.replace("\\", r"\{")),
    lambda parts: st.lists(parts.map(lambda part: f"{{{part}}}"), max_size=3).map("".join),
)


@given(
    before=st.text(alphabet="abc {.", max_size=10), content=inner, after=st.text(alphabet="abc }.", max_size=10)
)
def test_whatever_is_balanced_in_a_box_comes_out_of_it(before, content, after):
    (found,) = boxes(f"{before}\\boxed{{{content}}}{after}")
    assert found[2] == content
    assert found[0] == len(before)


@given(st.text(alphabet="\\boxed{} 1", max_size=60))
def test_a_box_is_a_part_of_the_text_and_boxes_do_not_overlap(text):
    end = 0
    for start, stop, content in boxes(text):
        assert end <= start < stop <= len(text)
        assert content in text[start:stop]
        end = stop


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("2 + 2 is 4", "4"),
        ("2 + 2 is 4.", "4"),
        ("It costs 1,200, as said", "1,200"),
        (r"First 7, then \(x^2 + 1\).", "x^2 + 1"),
        (r"$$\frac{1}{2}$$ of them", r"\frac{1}{2}"),
        ("the share is 3/4", "3/4"),
        ("it is -2.5%", "-2.5%"),
        ("x2 and y3", None),
        ("nothing", None),
    ],
)
def test_the_last_expression_is_a_formula_or_a_number(text, expression):
    assert last_expression(text) == expression
