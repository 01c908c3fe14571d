"""The first singular component of an update, against the SVD of NumPy; and what rank1-matrix writes."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.dtypes import from_numpy
from ckptlin.errors import InputError, MemoryBudgetError, NonFiniteError, SelectionError
from ckptlin.extrapolate import extrapolate, plan_extrapolation
from ckptlin.ingest import ingest
from ckptlin.kernels.rank_one import WIDTH, add_products, add_rank_one, row_products
from ckptlin.methods.rank1_matrix import Rank1Matrix, parse_rank1_matrix
from ckptlin.rank_one import MAX_PASSES, as_matrices, find_update, leading_direction
from ckptlin.source import open_source
from ckptlin.store.layout import blocks_of, param_chunk_shape
from ckptlin.store.store import TrajectoryStore
from tests.exact import FLOATS
from tests.extrapolation import load_bytes, rules_of
from tests.runs import file_contents, save_checkpoint
from tests.tiny_models import load_weights

STEPS = (0, 50, 100)
SHAPES = {
    "model.embed_tokens.weight": (40, 12),
    "model.layers.0.mlp.experts.up_proj": (3, 9, 7),
    "model.layers.0.conv.weight": (6, 2, 3, 2),
    "model.layers.0.self_attn.q_proj.weight": (16, 20),
    "model.norm.weight": (8,),
    "model.scale": (),
    "model.nothing": (0, 4),
}


def weights_of_rank(step, dtype=np.float32, rank=3):
    """Weights whose updates have a few components of different sizes, and noise."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        rng = np.random.default_rng(number)
        first = rng.normal(0, 0.02, shape)
        num, rows, columns = as_matrices(shape)
        update = np.zeros((num, rows, columns))
        for k in range(rank):
            left, right = rng.normal(size=(num, rows, 1)), rng.normal(size=(num, 1, columns))
            update += 3.0**-k * left * right
        noise = np.random.default_rng((number, step)).normal(0, 1e-2, shape)
        found[name] = np.asarray(first + 1e-4 * (step * update.reshape(shape) + noise)).astype(dtype)
    return found


def component(update):
    """The first singular component of each matrix of an update, by numpy.linalg.svd."""
    matrices = update.reshape(as_matrices(update.shape))
    found = np.zeros_like(matrices)
    for index, matrix in enumerate(matrices):
        if matrix.size:
            u, s, vt = np.linalg.svd(matrix, full_matrices=False)
            found[index] = s[0] * np.outer(u[:, 0], vt[0])
    return found.reshape(update.shape)


@pytest.fixture(scope="module", params=[np.float32, ml_dtypes.bfloat16, np.float64], ids=lambda d: d.__name__)
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("rank-one") / "run"
    for step in STEPS:
        save_checkpoint(root / f"checkpoint-{step}", weights_of_rank(step, request.param))
    return root


def cut(run, size):
    return RunTrajectories(
        discover(run), partition=lambda spec: blocks_of(spec, param_chunk_shape(spec.shape, size))
    )


# The kernel


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.zarr)
@given(seed=st.integers(0, 2**32), rows=st.integers(0, 9), columns=st.integers(1, 20))
def test_products_are_those_of_the_difference_in_float64(dtype, seed, rows, columns):
    rng = np.random.default_rng(seed)
    first, last = rng.normal(size=(2, rows, columns)).astype(dtype.numpy)
    basis = rng.normal(size=(columns, WIDTH))
    moved = last.astype(np.float64) - first.astype(np.float64)
    bits = [np.ascontiguousarray(w).view(dtype.bits).ravel() for w in (first, last)]
    products = np.ones_like(basis)
    add_products(*bits, dtype, basis, products)
    np.testing.assert_allclose(products, 1 + moved.T @ (moved @ basis), rtol=1e-12, atol=1e-12)
    vector = basis[:, 0].copy()
    np.testing.assert_allclose(row_products(*bits, dtype, vector), moved @ vector, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 2**32), shape=st.tuples(*[st.integers(1, 5)] * 3), data=st.data())
def test_an_outer_product_is_added_to_any_stretch(seed, shape, data):
    num, rows, columns = shape
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=num * rows), rng.normal(size=(num, columns))
    whole = (left.reshape(num, rows, 1) * right[:, None, :]).ravel()
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    total = np.ones(stop - start)
    add_rank_one(total, start, left, right, rows)
    np.testing.assert_array_equal(total, 1 + whole[start:stop])


# The search


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    rank=st.integers(1, 60),
    decay=st.sampled_from([1.0, 0.9, 0.5]),
    scale=st.sampled_from([1e-12, 1.0, 1e8]),
)
def test_the_direction_is_that_of_numpys_svd(seed, rows, columns, rank, decay, scale):
    rng = np.random.default_rng(seed)
    rank = min(rank, rows, columns)
    matrix = (
        (rng.normal(size=(rows, rank)) * decay ** np.arange(rank)) @ rng.normal(size=(rank, columns)) * scale
    )
    found = leading_direction(lambda basis: matrix.T @ (matrix @ basis), columns)
    _, s, vt = np.linalg.svd(matrix)
    assert found.has_converged
    assert np.linalg.norm(found.vector) == pytest.approx(1, rel=1e-12)
    assert np.linalg.norm(matrix @ found.vector) == pytest.approx(s[0], rel=1e-9)
    # The residual bounds the angle where another component is not nearly as large.
    if min(rows, columns) == 1 or s[1] < 0.9 * s[0]:
        assert abs(found.vector @ vt[0]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (700, 700)])
def test_even_noise_converges_within_the_passes_that_are_allowed(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    found = leading_direction(lambda basis: matrix.T @ (matrix @ basis), shape[1])
    assert found.has_converged
    assert 10 < found.num_passes < MAX_PASSES
    assert np.linalg.norm(matrix @ found.vector) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-10)


def test_what_has_not_converged_says_so():
    matrix = np.random.default_rng(0).normal(size=(300, 300))
    found = leading_direction(lambda basis: matrix.T @ (matrix @ basis), 300, max_passes=2)
    assert not found.has_converged
    assert found.num_passes == 2


def test_two_components_of_one_size_give_some_direction_of_both():
    matrix = np.diag([5.0, 5.0, 1.0, 0.5] + [0.1] * 30)
    found = leading_direction(lambda basis: matrix.T @ (matrix @ basis), 34)
    assert found.has_converged
    assert np.linalg.norm(matrix @ found.vector) == pytest.approx(5)
    assert np.linalg.norm(found.vector[:2]) == pytest.approx(1)


def test_an_update_of_zero_has_no_direction():
    assert leading_direction(lambda basis: 0 * basis, 7) is None


@pytest.mark.parametrize("held_bytes", [0, 1 << 30])
def test_pieces_and_memory_make_no_difference_to_the_last_bit(run, tmp_path, held_bytes):
    ingest(run, tmp_path / "store")
    whole = open_source(run)
    for source in (TrajectoryStore(tmp_path / "store"), cut(run, 1), cut(run, 5), cut(run, 50)):
        for name, spec in whole.tensors.items():
            expected = find_update(whole, spec, (0, 2), 0.5, 0)
            found = find_update(source, spec, (0, 2), 0.5, held_bytes)
            assert found.left.tobytes() == expected.left.tobytes(), name
            assert found.right.tobytes() == expected.right.tobytes(), name


# What is written


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("target", [-50, 75, 220])
def test_the_first_component_goes_on_along_a_line(run, tmp_path, rest, target):
    result = extrapolate(open_source(run), target, tmp_path / "out", method=str(Rank1Matrix(rest)))
    found = load_weights(tmp_path / "out")
    first, last = (load_weights(run / f"checkpoint-{step}") for step in (0, 100))
    assert set(rules_of(tmp_path / "out").values()) == {"extrapolate"}
    alpha = target / 100
    for name, values in found.items():
        w_1, w_t = first[name].astype(np.float64), last[name].astype(np.float64)
        moved = component(w_t - w_1)
        expected = w_t + (alpha - 1) * moved if rest else w_1 + alpha * moved
        ulp = 2.0 ** -from_numpy(values.dtype).mantissa_bits
        # v is held to float32; beyond that the output is rounded once.
        tolerance = 2e-7 * np.abs(moved).max(initial=0) + ulp * np.abs(expected)
        assert (np.abs(values.astype(np.float64) - expected) <= tolerance).all(), name
        assert np.abs(expected - w_t).max(initial=0) > 3 * tolerance.max(initial=0) or not values.size
    assert result.record["coefficients"] is None
    assert result.record["rank_one"] == {
        "update_of": [0, 100],
        "factor": alpha - rest,
        "max_passes": MAX_PASSES,
        "streamed_matrices": 0,
        "unconverged_matrices": 0,
    }


def test_vectors_follow_the_line_of_two_point(run, tmp_path):
    extrapolate(open_source(run), 250, tmp_path / "rank1", method="rank1-matrix")
    extrapolate(open_source(run), 250, tmp_path / "two-point", method="two-point", keep=())
    found, expected = load_weights(tmp_path / "rank1"), load_weights(tmp_path / "two-point")
    for name in ("model.norm.weight", "model.scale"):
        np.testing.assert_allclose(
            found[name].astype(np.float64), expected[name].astype(np.float64), rtol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("rest", [0, 1])
def test_an_update_of_rank_one_is_continued_exactly(tmp_path, rest):
    rng = np.random.default_rng(3)
    first, left, right = rng.normal(size=(20, 15)), rng.normal(size=(20, 1)), rng.normal(size=(1, 15))
    for step in STEPS:
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", {"w": first + 1e-3 * step * left @ right})
    extrapolate(open_source(tmp_path / "run"), 300, tmp_path / "out", method=f"rank1-matrix:rest={rest}")
    found = load_weights(tmp_path / "out")["w"]
    np.testing.assert_allclose(found, first + 0.3 * left @ right, rtol=0, atol=1e-7)


def test_a_tensor_that_never_moved_stays_bit_for_bit(tmp_path):
    values = np.float32([[-0.0, 1.0], [2.0, 3.0]])
    for step in STEPS:
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", {"still": values, "w": np.float32([[step, 1.0]])})
    extrapolate(open_source(tmp_path / "run"), 200, tmp_path / "out", method="rank1-matrix")
    found = load_weights(tmp_path / "out")
    assert found["still"].tobytes() == values.tobytes()
    assert found["w"].tolist() == [[200.0, 1.0]]


@pytest.mark.parametrize(("target", "rest", "copied"), [(100, 1, 100), (0, 0, 0)])
def test_at_its_origin_it_is_a_copy(run, tmp_path, target, rest, copied):
    extrapolate(open_source(run), target, tmp_path / "out", method=f"rank1-matrix:rest={rest}")
    assert load_bytes(tmp_path / "out") == load_bytes(run / f"checkpoint-{copied}")
    assert set(rules_of(tmp_path / "out").values()) == {"copy"}


def test_gate_and_patterns_combine_with_it(run, tmp_path):
    options = {"method": "rank1-matrix", "dtype": "float64"}
    source = open_source(run)
    extrapolate(source, 250, tmp_path / "free", **options)
    result = extrapolate(source, 250, tmp_path / "held", keep=["norm"], min_r2=0.999, **options)
    line = extrapolate(source, 250, tmp_path / "line", keep=["norm"], min_r2=0.999, dtype="float64")
    assert 0 < result.num_gated == line.num_gated < result.num_params
    free, held, line = (load_weights(tmp_path / name) for name in ("free", "held", "line"))
    last = load_weights(run / "checkpoint-100")
    assert rules_of(tmp_path / "held")["model.norm.weight"] == "keep"
    for name, values in held.items():
        stayed = (line[name] == last[name].astype(np.float64)) | (name == "model.norm.weight")
        expected = np.where(stayed, last[name].astype(np.float64), free[name])
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_sources_workers_and_memory_make_no_difference(run, tmp_path):
    ingest(run, tmp_path / "store")
    sources = [
        (open_source(run), 1),
        (TrajectoryStore(tmp_path / "store"), 3),
        (cut(run, 1), 2),
        (cut(run, 6), 2),
    ]
    contents = []
    for i, (source, num_workers) in enumerate(sources):
        options = {"method": "rank1-matrix", "min_r2": 0.9, "dtype": "float32", "num_workers": num_workers}
        result = extrapolate(source, 250, tmp_path / str(i), **options)
        contents.append((load_bytes(tmp_path / str(i)), result.num_lost, result.num_gated))
    assert all(content == contents[0] for content in contents)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(headroom=st.integers(0, 8000))
def test_what_does_not_fit_is_streamed_and_the_plan_says_so(run, tmp_path, headroom):
    source = open_source(run)
    lavish = plan_extrapolation(source, 250, tmp_path / "out", method="rank1-matrix", num_workers=1)
    assert lavish.num_streamed == 0
    least = lavish.memory.peak_bytes - lavish.rank_one.held_bytes
    budget = least + headroom
    plan = plan_extrapolation(
        source, 250, tmp_path / "out", method="rank1-matrix", num_workers=1, memory_bytes=budget
    )
    assert plan.memory.peak_bytes <= budget
    sizes = {
        name: 2 * t.num_bytes // as_matrices(t.shape)[0] for name, t in source.tensors.items() if t.num_params
    }
    assert plan.rank_one.held_bytes == min(headroom, max(sizes.values()))
    streamed = sum(as_matrices(source.tensors[n].shape)[0] for n, size in sizes.items() if size > headroom)
    assert plan.num_streamed == plan.to_dict()["rank_one"]["streamed_matrices"] == streamed
    with pytest.raises(
        MemoryBudgetError, match=r"extrapolate --method rank1-matrix needs at least .* --memory"
    ):
        plan_extrapolation(
            source, 250, tmp_path / "out", method="rank1-matrix", num_workers=1, memory_bytes=least - 1
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 100])
def test_a_weight_that_is_no_number_is_named(tmp_path, bad, step):
    for s in STEPS:
        weights = {"a": np.ones((4, 3), np.float32) * s, "b": np.eye(4, dtype=np.float32) * s}
        weights["b"][2, 1] = bad if s == step else 0
        save_checkpoint(tmp_path / f"run/checkpoint-{s}", weights)
    with pytest.raises(NonFiniteError, match=f"tensor `b` of .* has 1 .* weight at step {step}; .* --keep"):
        extrapolate(open_source(tmp_path / "run"), 200, tmp_path / "out", method="rank1-matrix")


def test_an_update_whose_squares_leave_float64_is_refused(tmp_path):
    for s in STEPS:
        save_checkpoint(tmp_path / f"run/checkpoint-{s}", {"w": np.eye(3) * 1e200 * s})
    with pytest.raises(NonFiniteError, match=r"tensor `w` .* squares leave float64; .*--keep"):
        extrapolate(open_source(tmp_path / "run"), 200, tmp_path / "out", method="rank1-matrix")


def test_record_and_card_say_what_was_extended(run, tmp_path):
    extrapolate(open_source(run), 250, tmp_path / "out", method="rank1-matrix")
    record = json.loads((tmp_path / "out/ckptlin.json").read_text())
    assert record["method"] == "rank1-matrix:rest=1"
    assert record["steps"] == [0, 100]
    card = file_contents(tmp_path / "out")["README.md"].decode()
    assert "2 checkpoints at steps 0 to 100" in card
    assert "`rank1-matrix:rest=1`: the first singular component of each matrix's update" in card


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("rank1-matrix:rank=2", SelectionError, "has no parameter 'rank'; it has rest"),
        ("rank1-matrix:rest=2", InputError, "rest=2 of method rank1-matrix must be 0 or 1"),
        ("rank1-matrix:rest", InputError, "rest= of method rank1-matrix must be 0 or 1"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        parse_rank1_matrix(text)


def test_the_name_of_another_method_is_not_its_own():
    assert parse_rank1_matrix("ols") is None
    assert parse_rank1_matrix(" rank1-matrix ").rest
