from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics import majority_at_k


def by_enumeration(votes, correct, k):
    right = {vote for vote, is_correct in zip(votes, correct, strict=True) if is_correct} - {-1}

    def won(subset):
        cast = [votes[i] for i in subset if votes[i] != -1]
        top = [vote for vote in set(cast) if cast.count(vote) == max(map(cast.count, cast))]
        return sum(vote in right for vote in top) / len(top) if top else 0.0

    return fmean(map(won, combinations(range(len(votes)), k)))


samples = st.lists(st.tuples(st.integers(-1, 4), st.booleans()), min_size=1, max_size=9)


@given(samples, st.data())
def test_it_is_the_mean_over_all_subsets(given_samples, data):
    votes, correct = zip(*given_samples, strict=True)
    k = data.draw(st.integers(1, len(votes)))
    assert majority_at_k(votes, correct, k) == pytest.approx(by_enumeration(votes, correct, k), abs=1e-13)


def test_many_samples_agree_with_drawn_subsets():
    generator = np.random.default_rng(0)
    votes = generator.choice([-1, 0, 1, 2, 3], 64, p=[0.1, 0.35, 0.3, 0.15, 0.1])
    drawn = []
    for _ in range(20_000):
        counts = np.bincount(generator.permutation(votes)[:16] + 1, minlength=5)[1:]
        drawn.append((counts[0] == counts.max()) / (counts == counts.max()).sum())
    error = np.std(drawn) / len(drawn) ** 0.5
    assert majority_at_k(votes, votes == 0, 16) == pytest.approx(np.mean(drawn), abs=4 * error)


def test_hundreds_of_samples_overflow_nothing():
    votes = np.arange(600) % 3
    assert [majority_at_k(votes, votes == 0, k) for k in (1, 300, 600)] == pytest.approx([1 / 3] * 3)


def test_one_sample_is_pass_at_1_of_those_that_vote():
    votes = np.array([0, 0, 1, -1])
    assert majority_at_k(votes, votes == 0, 1) == pytest.approx(0.5)


def test_a_subset_in_which_all_abstain_is_wrong():
    assert majority_at_k([-1, -1], [False, False], 2) == 0.0


@pytest.mark.parametrize(
    ("votes", "correct", "k", "message"),
    [
        ([0, 1], [True, False], 3, "maj@3 needs a k from 1 to the number of samples, and a problem has 2"),
        ([0, 1], [True], 1, "one for each sample"),
        ([-2, 1], [True, False], 1, "where a sample abstains, not -2"),
    ],
)
def test_votes_that_make_no_sense_are_refused(votes, correct, k, message):
    with pytest.raises(InputError, match=message):
        majority_at_k(votes, correct, k)
