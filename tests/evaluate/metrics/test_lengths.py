import numpy as np
import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.metrics import lengths


def test_statistics_are_those_of_all_samples():
    generator = np.random.default_rng(0)
    tokens = [generator.integers(0, 1000, n) for n in (3, 8, 5)]
    scores = [generator.integers(0, 2, n) for n in (3, 8, 5)]
    finished = [generator.random(n) < 0.7 for n in (3, 8, 5)]
    found = lengths(tokens, scores, finished=finished, empty=[t < 300 for t in tokens])
    every, correct = np.concatenate(tokens), np.concatenate(scores) == 1
    assert (found.num_samples, found.longest) == (16, every.max())
    assert (found.mean, found.median) == pytest.approx((every.mean(), np.median(every)))
    assert (found.lower_quartile, found.upper_quartile) == pytest.approx(
        tuple(np.quantile(every, [0.25, 0.75]))
    )
    assert found.share_truncated == pytest.approx((~np.concatenate(finished)).mean())
    assert found.num_empty == (every < 300).sum()
    assert (found.mean_correct, found.mean_wrong) == pytest.approx(
        (every[correct].mean(), every[~correct].mean())
    )


def test_what_is_not_known_is_none():
    found = lengths([[5, 7]], [[1, 1]])
    assert (found.mean_wrong, found.share_truncated, found.num_empty) == (None, None, None)
    assert found.to_dict()["mean_correct"] == 6.0


@pytest.mark.parametrize(
    ("tokens", "message"), [([[1]], "has shape"), ([[1, 2], [3]], "given for 2 problems, and scores for 1")]
)
def test_other_samples_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        lengths(tokens, [[0, 1]])
