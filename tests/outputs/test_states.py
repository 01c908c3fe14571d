"""Which states are looked at, and what a sketch keeps of them."""

import numpy as np
import pytest

from ckptlin.errors import InputError
from ckptlin.outputs.responses import Responses
from ckptlin.outputs.scorers import Probe
from ckptlin.outputs.states import pick_states, sketch_matrix


def responses(*pairs):
    probes = tuple(Probe(np.array(prompt, np.int32), np.array(answer, np.int32)) for prompt, answer in pairs)
    return Responses(probes, tuple(("p", n) for n in range(len(pairs))), tokenized_here=False)


def test_tokens_behind_the_same_text_count_once():
    # The third sample parts from the first at its third token: what predicts that one is the same still.
    found = pick_states(
        responses(([1], [5, 6, 7]), ([1], [5, 6, 7]), ([1], [5, 6, 8, 9]), ([2], [5])), num_tokens=99
    )
    assert (found.size, found.num_distinct, found.num_tokens) == (5, 5, 11)
    assert found.responses == (0, 2, 3)
    assert [place.tolist() for place in found.places] == [[0, 1, 2], [3], [0]]
    assert found.starts.tolist() == [0, 3, 4]


def test_a_prompt_is_not_taken_for_the_beginning_of_an_answer():
    assert pick_states(responses(([1, 2], [3]), ([1], [2, 3])), num_tokens=9).num_distinct == 3 - 1


def test_a_sample_is_the_same_for_a_seed_and_cut_off_behind_its_last_token():
    rng = np.random.default_rng(0)
    many = responses(*(([n], rng.integers(0, 9, 20)) for n in range(30)))
    one, same, other = (pick_states(many, num_tokens=50, seed=seed) for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest
    assert one.size == 50
    for probe, places in zip(one.probes, one.places, strict=True):
        assert len(probe.token_ids) == places[-1] + 1
        assert (np.diff(places) > 0).all()
    counts = np.zeros(20)
    for seed in range(200):
        for places in pick_states(many, num_tokens=50, seed=seed).places:
            counts[places] += 1
    assert counts.min() > 400, "every position is as likely as any other: 500 expected, deviation 21"
    assert counts.max() < 600


def test_a_sketch_keeps_lengths_and_angles():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(500, 400)) * rng.exponential(size=400)
    matrices = [sketch_matrix(400, 64, layer=layer) for layer in (0, 1)]
    assert matrices[0].dtype == np.float32
    ratios = ((states @ matrices[0]) ** 2).sum(axis=1) / (states**2).sum(axis=1)
    assert abs(ratios.mean() - 1) < 0.1
    assert ratios.std() < 2 * np.sqrt(2 / 64)
    assert abs(np.corrcoef(matrices[0].ravel(), matrices[1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(sketch_matrix(400, 64, layer=1), matrices[1])
    assert (sketch_matrix(400, 64, layer=1, seed=1) != matrices[1]).any()


def test_a_narrow_model_is_not_sketched():
    np.testing.assert_array_equal(sketch_matrix(8, 8, layer=3), np.eye(8))


@pytest.mark.parametrize(("what", "message"), [("tokens", "--tokens is 0"), ("dim", "--dim is 0")])
def test_nothing_to_look_at_is_refused(what, message):
    with pytest.raises(InputError, match=message):
        pick_states(responses(([1], [2])), num_tokens=0) if what == "tokens" else sketch_matrix(8, 0, layer=0)
