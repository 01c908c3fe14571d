import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError, SelectionError
from ckptlin.problems import draw_sums, in_test_split, load_problems, make_sum
from ckptlin.problems.sums import CHARACTERS, END, build_tokenizer


def test_sums_are_different_and_their_answers_right():
    problems = draw_sums(1000, num_terms=4, seed=0)
    assert len({problem.problem for problem in problems}) == len({p.id for p in problems}) == 1000
    for problem in problems[:50]:
        numbers = [int(n) for n in problem.problem.removesuffix("=").split("+")]
        assert [int(n) for n in problem.answer.split(";")] == np.cumsum(numbers)[1:].tolist()


seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, other=seeds, terms=st.integers(3, 4), num=st.integers(1, 60))
def test_no_training_set_of_any_seed_has_a_problem_of_a_test_set(seed, other, terms, num):
    train = draw_sums(num, split="train", num_terms=terms, seed=seed)
    test = draw_sums(num, split="test", num_terms=terms, seed=other)
    assert len(train) == len(test) == num
    assert not {p.problem for p in train} & {p.problem for p in test}


@given(st.lists(st.integers(0, 9), min_size=2, max_size=7))
def test_the_split_of_a_sum_is_a_function_of_its_text(digits):
    problem = make_sum(digits)
    assert in_test_split(problem.problem) == in_test_split(problem.id + "=")
    if len(digits) <= 3:
        which = "test" if in_test_split(problem.problem) else "train"
        assert problem in draw_sums(split=which, num_terms=len(digits))


def test_the_splits_are_all_sums_and_a_tenth_is_for_testing():
    train, test = (draw_sums(split=split, num_terms=4) for split in ("train", "test"))
    everything = {p.problem for p in draw_sums(num_terms=4)}
    assert len(everything) == 10_000
    assert {p.problem for p in train} | {p.problem for p in test} == everything
    assert len(train) + len(test) == 10_000
    # Binomial, 10,000 draws of probability 1/10: standard deviation 30.
    assert abs(len(test) - 1_000) < 4 * 30


def test_another_seed_gives_others_and_more_begin_with_the_same():
    first = draw_sums(20, split="train", seed=1)
    assert first == draw_sums(40, split="train", seed=1)[:20]
    assert first != draw_sums(20, split="train", seed=2)


def test_the_same_sums_on_every_machine():
    """What figures are compared on must not change with a version of ckptlin."""
    assert [p.id for p in draw_sums(3, seed=0)] == ["6+3+6+9+5", "5+1+1+1+3", "8+5+0+6+0"]
    assert [p.id for p in draw_sums(3, split="test")] == ["1+8+8+3+6", "5+8+7+0+0", "8+7+7+2+6"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_problems": 0}, InputError, "0 sums of 5 digits were asked for; give 1 to 100,000"),
        ({"num_problems": 101, "num_terms": 2}, InputError, "give 1 to 100$"),
        ({"num_problems": 50, "num_terms": 2, "split": "test"}, InputError, "the split test has"),
        ({"num_problems": 5, "num_terms": 1}, InputError, "2 to 7 terms, not 1"),
        ({"num_problems": 5, "split": "dev"}, SelectionError, "no split 'dev'; they have train and test"),
    ],
)
def test_sums_that_there_are_not_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_sums(**arguments)


def test_they_load_by_name():
    assert load_problems("sums:test", limit=5, seed=3) == draw_sums(5, split="test", seed=3)
    assert load_problems("sums", limit=5) == draw_sums(5, split="train")
    assert load_problems("sums", split="test", limit=5) == draw_sums(5, split="test")
    assert load_problems("sums", limit=5, needs="solution")


def test_a_token_is_a_character_and_the_end_is_none_of_the_answer():
    tokenizer = build_tokenizer()
    problem = make_sum((3, 7, 5, 9, 2))
    ids = tokenizer(problem.problem + problem.answer + END)["input_ids"]
    assert len(ids) == len(problem.problem + problem.answer) + 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == problem.problem + problem.answer
    assert END not in problem.answer
    assert re.fullmatch(r"[0-9;]+", problem.answer)
    assert len(tokenizer) == len(CHARACTERS)
