"""What Gram matrices say of a run, against the same computed from the weights themselves."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ckptlin.errors import InputError
from ckptlin.gram_statistics import LEVELS, movement, movements
from tests.grams import grams_of

MODEL = {
    "model.embed_tokens.weight": 7,
    "model.layers.1.mlp.up_proj.weight": 5,
    "model.layers.0.mlp.up_proj.weight": 4,
    "model.layers.0.input_layernorm.weight": 3,
}


@st.composite
def walks(draw, min_steps=2):
    """Steps, and a walk with a trend: ``(T, n) float64``."""
    num_steps = draw(st.integers(min_steps, 9))
    gaps = draw(st.lists(st.integers(1, 50), min_size=num_steps - 1, max_size=num_steps - 1))
    first = draw(st.sampled_from([0, 10**9]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = first + np.cumsum([0, *gaps])
    noise = rng.normal(size=(num_steps, draw(st.integers(1, 12)))).cumsum(axis=0)
    trend = np.outer(steps - steps[0], rng.normal(size=noise.shape[1]))
    return steps.tolist(), 10.0 ** draw(st.integers(-9, 9)) * (noise + draw(st.floats(0, 1)) * trend)


def gram_of(walk):
    moves = walk - walk[0]
    return moves @ moves.T


@given(walks())
def test_every_figure_agrees_with_the_weights_themselves(drawn):
    steps, walk = drawn
    found = movement(gram_of(walk), steps)
    updates = np.diff(walk, axis=0)
    lengths = np.linalg.norm(updates, axis=1)
    singular = np.linalg.svd(walk - walk[0], compute_uv=False)
    assert found.update_norm == pytest.approx(np.linalg.norm(walk[-1] - walk[0]), rel=1e-9)
    assert found.straightness == pytest.approx(found.update_norm / lengths.sum(), rel=1e-6)
    assert found.rank1_share == pytest.approx(singular[0] ** 2 / (singular**2).sum(), rel=1e-9)
    rank = min(len(singular), len(found.spectrum))
    np.testing.assert_allclose(found.spectrum[:rank], singular[:rank], atol=1e-6 * singular[0])
    assert all(later <= earlier for earlier, later in pairwise(found.spectrum))
    if len(steps) > 2:
        cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairwise(updates)]
        assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    else:
        assert found.mean_cosine is None


@given(walks(min_steps=3))
def test_r2_is_that_of_every_parameter_weighted_by_its_variation(drawn):
    steps, walk = drawn
    r2 = [stats.linregress(np.array(steps) - steps[0], column).rvalue ** 2 for column in walk.T]
    variation = ((walk - walk.mean(axis=0)) ** 2).sum(axis=0)
    expected = (np.array(r2) * variation).sum() / variation.sum()
    assert movement(gram_of(walk), steps).r2 == pytest.approx(expected, abs=1e-6)


def test_a_straight_line_and_a_path_back_and_forth():
    line = np.outer(np.arange(5.0), [1.0, -2.0])
    found = movement(gram_of(line), range(0, 50, 10))
    assert (found.mean_cosine, found.straightness, found.rank1_share) == pytest.approx((1, 1, 1))
    assert found.r2 == pytest.approx(1)
    back = np.array([[0.0], [1.0], [0.0], [1.0]])
    found = movement(gram_of(back), range(4))
    assert found.mean_cosine == -1
    assert found.straightness == pytest.approx(1 / 3)


def test_what_never_moved_has_no_figures_but_the_norm():
    found = movement(np.zeros((4, 4)), range(4))
    assert found.update_norm == 0
    assert (found.mean_cosine, found.straightness, found.rank1_share, found.r2) == (None,) * 4
    assert found.spectrum == (0.0,) * 4


def test_updates_of_zero_are_left_out_of_the_mean_cosine():
    walk = np.array([[0.0, 0], [1, 0], [1, 0], [2, 0], [2, 1]])
    assert movement(gram_of(walk), range(5)).mean_cosine == 0
    assert movement(gram_of(walk[:4]), range(4)).mean_cosine is None


def test_tensors_that_are_put_together_move_as_one_vector():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(6, n)).cumsum(axis=0) for name, n in MODEL.items()}
    grams = grams_of(range(6), weights)
    together = {
        "model": [list(MODEL)],
        "layer": [[n for n in MODEL if f"layers.{k}." in n] for k in (0, 1)],
        "kind": [
            ["model.embed_tokens.weight"],
            [n for n in MODEL if "up_proj" in n],
            [n for n in MODEL if "norm" in n],
        ],
        "tensor": [[n] for n in MODEL],
    }
    names = {
        "model": ["model"],
        "layer": ["layer 0", "layer 1"],
        "kind": ["embed_tokens", "mlp.up_proj", "input_layernorm"],
        "tensor": list(MODEL),
    }
    for level in LEVELS:
        found = movements(grams, level)
        assert [m.name for m in found] == names[level]
        for one, members in zip(found, together[level], strict=True):
            walk = np.concatenate([weights[name] for name in members], axis=1)
            expected = movement(gram_of(walk), range(6))
            assert (one.num_tensors, one.num_params) == (len(members), walk.shape[1])
            for figure in ("update_norm", "mean_cosine", "straightness", "rank1_share", "r2"):
                assert getattr(one, figure) == pytest.approx(getattr(expected, figure), rel=1e-9)
            assert json.loads(json.dumps(one.to_dict()))["spectrum"] == pytest.approx(list(one.spectrum))
            assert set(one.to_dict()) == set(one.to_row()) | {"spectrum"}


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="at least 2 steps"):
        movement(np.zeros((1, 1)), [0])
    with pytest.raises(InputError, match="no level 'head'"):
        movements(grams_of((0, 1), {"w": np.zeros((2, 1))}), "head")
