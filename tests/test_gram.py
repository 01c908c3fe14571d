"""Gram matrices of stores and runs against float64 arithmetic, whatever way they are computed."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptlin.block_gram import BlockGram, accumulate, increments
from ckptlin.errors import InputError, MemoryBudgetError, NonFiniteError, SelectionError
from ckptlin.gram import gram, plan_gram
from ckptlin.ingest import ingest
from ckptlin.naming import is_buffer
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.grams import grams_of, spacing
from tests.runs import MODEL, save_checkpoint, weights_at

FLOATS = [name for name, (shape, dtype) in MODEL.items() if np.dtype(dtype).kind != "i" and 0 not in shape]
# A tensor of several blocks, whose last dimension is cut; rows in three rows of chunks.
LARGE = {"wide": ((2, 600_000), ml_dtypes.bfloat16), "small": ((5,), np.float32)}
STEPS = tuple(range(0, 340, 10))


def trajectories(steps, model=MODEL, names=None):
    by_step = [weights_at(step, model) for step in steps]
    return {name: np.stack([w[name] for w in by_step]) for name in names or model}


def assert_agrees(found, expected, tolerance=3e-8):
    """Hold matrices against those of float64 arithmetic, relative to the lengths of both moves."""
    assert found.steps == expected.steps
    assert set(found.matrices) == set(expected.matrices)
    assert dict(found.num_params) == expected.num_params
    for name, matrix in found.matrices.items():
        want = expected.matrices[name]
        np.testing.assert_array_equal(matrix, matrix.T)
        assert not matrix[0].any()
        scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert np.all(np.abs(matrix - want) <= tolerance * scale), name
        assert found.samples[name].dtype == expected.samples[name].dtype
        assert found.samples[name].tobytes() == expected.samples[name].tobytes()


def assert_same(one, other):
    """The same to the last bit."""
    assert one.steps == other.steps
    assert list(one.matrices) == list(other.matrices)
    assert dict(one.rounding) == dict(other.rounding)
    assert dict(one.num_params) == dict(other.num_params)
    for name in one.matrices:
        np.testing.assert_array_equal(one.matrices[name], other.matrices[name], err_msg=name, strict=True)
        assert one.samples[name].dtype == other.samples[name].dtype
        assert one.samples[name].tobytes() == other.samples[name].tobytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    for step in STEPS:
        save_checkpoint(root / f"run/checkpoint-{step}", weights_at(step, LARGE))
    return ingest(root / "run", root / "store").store


# --- what they are ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(0, 10), (3, 4, 50), tuple(range(0, 50, 10)), tuple(range(40))])
def test_they_are_the_inner_products_of_the_moves(make_run, tmp_path, steps):
    run = make_run(steps)
    weights = trajectories(steps, names=FLOATS)
    expected = grams_of(steps, weights, 256)
    found = gram(open_source(run))
    assert_agrees(found, expected)
    assert_same(gram(ingest(run, tmp_path / "store").store), found)
    for name, values in weights.items():
        flat = values.reshape(len(steps), -1)
        ulps = (spacing(flat[0]) ** 2)[(flat != flat[0]).any(axis=0)]
        assert found.rounding[name] == pytest.approx(ulps.sum() / 12, rel=1e-12)
    assert found.rounding["model.scale"] == 0.0


def test_a_tensor_of_several_blocks(large):
    expected = grams_of(STEPS, trajectories(STEPS, LARGE), 256)
    found = gram(large, keep=False)
    assert len(large.blocks("wide")) > 1
    assert_agrees(found, expected)
    assert found.samples["wide"].shape == (len(STEPS), 256)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e18, 1e30])
@pytest.mark.parametrize("num_params", [300, 20_000])
def test_moves_whose_squares_leave_the_range_of_float32(tmp_path, dtype, scale, num_params):
    rng = np.random.default_rng(0)
    weights = {"w": (scale * rng.normal(size=(5, num_params))).astype(dtype)}
    for row in range(5):
        save_checkpoint(tmp_path / f"run/checkpoint-{row}", {"w": weights["w"][row]})
    # Moves that take each other back leave four times the error.
    assert_agrees(gram(open_source(tmp_path / "run")), grams_of(range(5), weights, 256), 2e-7)


def test_a_tensor_that_never_moved(tmp_path):
    still = np.random.default_rng(0).normal(size=(20,)).astype(ml_dtypes.bfloat16)
    for step in range(4):
        save_checkpoint(
            tmp_path / f"run/checkpoint-{step}", {"still": still, "w": np.full(3, step, np.float32)}
        )
    found = gram(open_source(tmp_path / "run"))
    assert not found.matrices["still"].any()
    assert found.rounding["still"] == 0.0
    np.testing.assert_array_equal(found.matrices["w"], 3 * np.outer(range(4), range(4)))


@given(st.data())
def test_running_sums_undo_differences(data):
    num_steps = data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    walk = np.cumsum(rng.integers(-9, 9, (num_steps, 3)), axis=0).astype(float)
    walk -= walk[0]
    matrix = walk @ walk.T
    np.testing.assert_array_equal(increments(matrix), np.diff(walk, axis=0) @ np.diff(walk, axis=0).T)
    np.testing.assert_array_equal(accumulate(increments(matrix)), matrix)


# --- whatever way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_held", [1, 2, 3])
@pytest.mark.parametrize("num_known", [0, 1, 12, 20, 30])
def test_holding_fewer_rows_changes_nothing_in_the_last_bit(large, num_held, num_known):
    def work(held, known):
        return BlockGram(source=large, rows=range(len(STEPS)), num_known=known, num_held=held, sample_size=256)

    blocks = large.blocks("wide")[-1:] + large.blocks("small")
    later = np.maximum.outer(np.arange(len(STEPS) - 1), np.arange(len(STEPS) - 1)) >= num_known - 1
    for one, other in zip(work(num_held, num_known)(blocks), work(9, 0)(blocks), strict=True):
        np.testing.assert_array_equal(one.products[later], other.products[later])
        np.testing.assert_array_equal(one.sample, other.sample)
        assert one.rounding == other.rounding


def test_workers_and_memory_change_nothing_in_the_last_bit(large):
    whole = gram(large, keep=False, num_workers=1)
    assert_same(gram(large, keep=False, num_workers=3), whole)
    plan = plan_gram(large, num_workers=1)
    assert (plan.num_held, plan.num_passes) == (3, 1)
    seen = set()
    budget = plan.memory.peak_bytes
    while len(seen) < 2:
        budget -= 1 << 20
        less = plan_gram(large, num_workers=1, memory_bytes=budget)
        assert less.memory.peak_bytes <= budget
        if less.num_held in seen or less.num_held == 3:
            continue
        seen.add(less.num_held)
        assert less.num_passes == {2: (34 + 12) / 34, 1: (34 + 24 + 12) / 34}[less.num_held]
        assert less.bytes_in == round(less.num_passes * plan.bytes_in)
        assert_same(gram(large, keep=False, num_workers=1, memory_bytes=budget), whole)
    assert seen == {1, 2}
    with pytest.raises(MemoryBudgetError, match=r"gram needs at least .* give --memory"):
        plan_gram(large, memory_bytes=340 << 20)


def test_more_workers_may_be_worth_more_reads(large):
    """With room for one worker that holds all rows, or more that hold fewer, the fewest reads a worker win."""
    whole = plan_gram(large, num_workers=1).memory
    found = [plan_gram(large, num_workers=8, memory_bytes=whole.peak_bytes + extra) for extra in (0, 1 << 40)]
    assert found[1].num_passes == 1
    assert found[1].memory.num_workers == 8
    assert found[0].num_passes / found[0].memory.num_workers <= 1
    assert found[0].memory.peak_bytes <= whole.peak_bytes


def test_a_store_and_a_run_with_their_own_chunks_of_steps_agree_to_the_last_bit(large):
    run = open_source(large.path.parent / "run")
    assert_same(gram(run), gram(large, keep=False))
    assert_same(gram(run, steps="0:150"), gram(large, steps="0:150", keep=False))


# --- what is selected ---------------------------------------------------------------------------------


def test_a_window_is_relative_to_its_first_step(large):
    steps = tuple(range(30, 200, 20))
    expected = grams_of(steps, trajectories(steps, LARGE), 256)
    found = gram(large, steps="30:200:20")
    assert_agrees(found, expected)
    assert TrajectoryStore(large.path).record.gram is None
    only = gram(large, include=["small"], keep=False)
    assert list(only.matrices) == ["small"]


def test_what_holds_no_weights_is_left_out(make_run):
    found = gram(open_source(make_run((0, 10))))
    assert set(found.matrices) == set(FLOATS)
    assert not any(is_buffer(name) for name in found.matrices)


def test_what_cannot_be_multiplied_is_refused(make_run, tmp_path):
    run = make_run((0, 10))
    source = open_source(run)
    with pytest.raises(InputError, match=r"at least 2 checkpoints, and .* has only one in --steps 10"):
        gram(source, steps="10")
    with pytest.raises(SelectionError, match="--include 'absent'"):
        gram(source, include=["absent"])
    with pytest.raises(SelectionError, match="none of those selected holds weights"):
        gram(source, include=["counts"])
    with pytest.raises(InputError, match="--workers must be at least 1"):
        gram(source, num_workers=0)
    with pytest.raises(InputError, match="has only step 0"):
        gram(open_source([f"0={run}/checkpoint-0"]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    for step in range(20):
        weights = weights_at(step)
        if step == 13:
            weights["model.norm.weight"][2] = value
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights)
    what = "NaN" if np.isnan(value) else "infinite"
    with pytest.raises(NonFiniteError, match=rf"`model\.norm\.weight` .* 1 {what} weight at step 13; leave"):
        gram(open_source(tmp_path / "run"))
    store = ingest(tmp_path / "run", tmp_path / "store").store
    with pytest.raises(NonFiniteError, match="at step 13"):
        gram(store)
    assert TrajectoryStore(store.path).record.gram is None
    assert sorted(p.name for p in store.path.iterdir() if "gram" in p.name) == []
    assert "model.norm.weight" not in gram(store, exclude=["norm"]).matrices


def test_moves_too_large_for_float64_are_named(tmp_path):
    for step in range(3):
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", {"w": np.full(3, step * 1e200)})
    with pytest.raises(NonFiniteError, match=r"`w` .* 1e150 or more, whose square is too large for float64"):
        gram(open_source(tmp_path / "run"))
