"""Seeds of answers, and what is refused of sampling."""

import pytest

from ckptlin.errors import InputError
from ckptlin.evaluate.sampling import Sampling


def test_the_defaults_are_the_papers():
    sampling = Sampling()
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.num_samples) == (
        0.6,
        0.95,
        32_768,
        64,
    )


def test_every_answer_has_a_seed_of_its_own():
    sampling = Sampling()
    seeds = {sampling.seed_of(f"p{i}", j) for i in range(100) for j in range(64)}
    assert len(seeds) == 6400
    assert all(0 <= seed < 1 << 48 for seed in seeds)
    # Neither the boundary between the two nor the general seed can be mistaken.
    assert sampling.seed_of("1", 11) != sampling.seed_of("11", 1)
    assert Sampling(seed=1).seed_of("p", 0) != sampling.seed_of("p", 0)


def test_a_seed_depends_on_nothing_else():
    assert Sampling(num_samples=4, temperature=1.0).seed_of("p", 3) == Sampling().seed_of("p", 3)
    # Written down, so that an evaluation that was begun by this version can go on with later ones.
    assert Sampling().seed_of("aime-1", 0) == 142_708_444_130_345


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1),
     ("max_tokens", 0), ("num_samples", 0)],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(name, value):
    with pytest.raises(InputError, match=name):
        Sampling(**{name: value})
