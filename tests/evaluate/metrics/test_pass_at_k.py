from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics import pass_at_k


@st.composite
def counts(draw, most):
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n, draw(st.integers(1, n))


@given(counts(most=9))
def test_it_is_the_share_of_subsets_that_hold_a_correct_sample(given_counts):
    c, n, k = given_counts
    subsets = list(combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k([c], [n], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


@given(counts(most=2000))
def test_it_is_the_closed_form_in_fractions(given_counts):
    c, n, k = given_counts
    expected = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(c, n, k) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("c", "n", "k", "message"),
    [
        ([1, 1], [4, 3], 4, "needs at least 4 samples of each problem, and one has 3"),
        ([1], [4], 0, "a k of at least 1, not 0"),
        ([5], [4], 1, "from 0 to all of its samples"),
        ([-1], [4], 1, "from 0 to all of its samples"),
    ],
)
def test_counts_that_make_no_sense_are_refused(c, n, k, message):
    with pytest.raises(InputError, match=message):
        pass_at_k(c, n, k)
