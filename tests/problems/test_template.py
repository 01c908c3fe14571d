import pytest

from ckptlin.errors import InputError
from ckptlin.problems import TEMPLATES, Problem, get_template

PROBLEM = Problem(r"What is \frac{4}{2}? {problem}", "2")


def test_boxed_asks_in_the_words_that_the_paper_trains_with():
    template = get_template("boxed")
    words = r"Let's think step by step and output the final answer within \boxed{}."
    assert template.chat
    assert template.render(PROBLEM) == f"{PROBLEM.problem} {words}"
    assert template.prompt(PROBLEM) == [{"role": "user", "content": f"{PROBLEM.problem} {words}"}]


def test_plain_is_the_problem_and_nothing_else():
    assert get_template("plain").prompt(PROBLEM) == PROBLEM.problem


def test_a_text_of_ones_own_keeps_its_braces():
    template = get_template(r"Q: {problem} A: \boxed{", chat=False)
    assert template.prompt(PROBLEM) == rf"Q: {PROBLEM.problem} A: \boxed{{"


def test_a_named_template_can_be_used_without_a_chat():
    assert get_template("boxed", chat=False).prompt(PROBLEM).endswith(r"\boxed{}.")
    assert get_template("plain", chat=True).prompt(PROBLEM)[0]["role"] == "user"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_problem_that_has_the_words_already_does_not_get_them_twice(name):
    template = get_template(name)
    once = template.render(PROBLEM)
    assert template.render(Problem(once)) == once


def test_earlier_messages_stay_before_the_prompt():
    system = {"role": "system", "content": "Be brief."}
    problem = Problem("1+1?", extra={"earlier_messages": [system]})
    assert get_template("{problem} Say it.", chat=True).prompt(problem) == [
        system,
        {"role": "user", "content": "1+1? Say it."},
    ]
    with pytest.raises(InputError, match="earlier chat messages"):
        get_template("plain").prompt(problem)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "boxes",
            "there is no prompt template 'boxes'; choose boxed, code, plain, or give a text with {problem}",
        ),
        ("{problem} and {problem}", "has {problem} 2 times"),
    ],
)
def test_what_is_no_template_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        get_template(name)
