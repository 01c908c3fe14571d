"""The demo's base model: what it learns from, and what came of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats

from ckptlin.demo import base_model
from ckptlin.demo.evaluation import answer_probabilities
from ckptlin.demo.make_base import RECORD_NAME, BaseSettings, careless, make_base, new_model
from ckptlin.errors import InputError, OutputExistsError
from ckptlin.problems import draw_sums
from ckptlin.problems.sums import build_tokenizer

TINY = BaseSettings(num_terms=2, hidden_size=32, num_layers=1, steps=40, batch=16, warmup_steps=5)


def mistakes(problem):
    """What each written total has beyond the one before it and the next digit."""
    digits = [int(digit) for digit in problem.problem[:-1].split("+")]
    totals = [digits[0], *map(int, problem.solution.split(";"))]
    return [
        total - before - digit for before, total, digit in zip(totals, totals[1:], digits[1:], strict=False)
    ]


def test_each_total_is_off_as_often_as_said_and_the_next_goes_on_from_it():
    problems = draw_sums(4_000, split="train")
    made = careless(problems, error_rate=0.2, random=np.random.default_rng(1))
    assert [problem.answer for problem in made] == [problem.answer for problem in problems]
    off = np.array([mistakes(problem) for problem in made])
    assert off.shape == (4_000, 4)
    assert set(np.unique(off)) == {-2, -1, 0, 1, 2}
    for place in range(4):
        assert stats.binomtest(int((off[:, place] != 0).sum()), 4_000, 0.2).pvalue > 1e-4
    right = sum(problem.solution == problem.answer for problem in made)
    assert stats.binomtest(right, 4_000, 0.8**4).pvalue > 1e-4


@pytest.mark.parametrize(("rate", "num_off"), [(0.0, 0), (1.0, 4)])
def test_without_mistakes_solutions_are_right_and_with_nothing_else_no_total_is(rate, num_off):
    made = careless(draw_sums(50), error_rate=rate, random=np.random.default_rng(0))
    assert all(np.count_nonzero(mistakes(problem)) == num_off for problem in made)


def test_no_total_is_negative():
    problems = draw_sums(num_terms=2)
    made = careless(problems, error_rate=1.0, random=np.random.default_rng(0))
    assert all(problem.solution.isdigit() for problem in made)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        record = make_base(tmp_path / name, seed=seed, settings=TINY)
        assert record == json.loads((tmp_path / name / RECORD_NAME).read_text())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_it_learns(tmp_path):
    briefly = make_base(tmp_path / "briefly", settings=TINY)
    longer = make_base(
        tmp_path / "longer", settings=BaseSettings(**{**TINY_FIELDS, "steps": 400, "error_rate": 0.0})
    )
    # Guessing among the 12 tokens of an answer costs log 12 = 2.5 nats.
    assert longer["loss"] < briefly["loss"] < 2.5
    probabilities = answer_probabilities(tmp_path / "longer", draw_sums(split="test", num_terms=2))
    assert probabilities.mean() > 0.3


TINY_FIELDS = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}


def test_a_directory_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputExistsError, match="choose another directory"):
        make_base(tmp_path, settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 48}, "a multiple of 32"),
        ({"error_rate": 1.5}, "a probability"),
        ({"steps": 10, "warmup_steps": 10}, "within the 10 steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        BaseSettings(**sizes)


# --- the model that comes with the package ------------------------------------------------------------


def record():
    return json.loads((base_model() / RECORD_NAME).read_text())


def test_the_shipped_model_is_what_the_script_makes_by_default():
    assert record()["settings"] == {name: getattr(BaseSettings(), name) for name in TINY_FIELDS}
    shipped = load_file(base_model() / "model.safetensors")
    fresh = dict(new_model(BaseSettings(), build_tokenizer()).named_parameters())
    assert {name: w.shape for name, w in shipped.items()} == {name: tuple(p.shape) for name, p in fresh.items()}
    assert sum(w.size for w in shipped.values()) == record()["num_params"] == 112_448
    assert {w.dtype for w in shipped.values()} == {np.dtype(np.float32)}
    assert sum(path.stat().st_size for path in base_model().iterdir()) < 480_000


def test_the_shipped_model_adds_with_as_many_mistakes_as_its_record_says():
    found = record()["held_out"]
    # What it learned from: four totals, each right with probability 0.8.
    assert found["pass_at_1_computed"] == pytest.approx(0.8**4, abs=0.01)
    assert abs(found["pass_at_1"] - found["pass_at_1_computed"]) < 4 * found["standard_error"]
    probabilities = answer_probabilities(base_model(), draw_sums(found["num_problems"], split="test"))
    assert probabilities.mean() == pytest.approx(found["pass_at_1_computed"], abs=1e-4)
