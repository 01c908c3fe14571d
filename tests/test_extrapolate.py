import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ckptlin.ingest_plan
from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.dtypes import from_numpy, from_zarr
from ckptlin.errors import InputError, NonFiniteError
from ckptlin.extrapolate import extrapolate
from ckptlin.ingest import ingest
from ckptlin.methods import METHODS
from ckptlin.source import open_source
from ckptlin.store.layout import blocks_of, param_chunk_shape
from ckptlin.store.store import TrajectoryStore
from tests.exact import fitted_value, is_near_tie, nearest
from tests.extrapolation import (
    COPIED,
    MODEL,
    STEPS,
    as_rounded,
    assert_predicts,
    assert_same_weights,
    load_bytes,
    predict,
    rules_of,
    two_step_run,
)
from tests.runs import file_contents, save_checkpoint, weights_at
from tests.strategies import bits as bits_of
from tests.strategies import special_bits
from tests.tiny_models import load_weights

F32 = from_zarr("float32")
finite_bits = bits_of(F32).filter(lambda word: word & 0x7F800000 != 0x7F800000)

# Methods that continue a line, from the steps alone.
LINES = ("anchored", "ols", "two-point", "wls-anchored")


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run of one model with tensors of every kind."""
    root = tmp_path_factory.mktemp("extrapolate") / "run"
    for step in STEPS:
        save_checkpoint(root / f"checkpoint-{step}", weights_at(step, MODEL))
    return root


@pytest.fixture(scope="session")
def store(run) -> TrajectoryStore:
    ingest(run, run.with_name("store"))
    return TrajectoryStore(run.with_name("store"))


@pytest.fixture(scope="session")
def long_run(tmp_path_factory) -> Path:
    """Forty steps: three rows of chunks."""
    root = tmp_path_factory.mktemp("long") / "run"
    for step in range(0, 400, 10):
        save_checkpoint(root / f"checkpoint-{step}", weights_at(step, MODEL))
    ingest(root, root.with_name("store"))
    return root


# The formula


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.tuples(finite_bits, finite_bits), min_size=1, max_size=30),
    base=st.integers(0, 1000),
    span=st.integers(1, 1000),
    target=st.integers(0, 5000),
)
def test_two_point_in_float32_is_the_formula_in_float64_rounded_once(tmp_path, words, base, span, target):
    first, second = np.array(words, np.uint32).view(np.float32).T
    assume(target not in (base, base + span))
    alpha = (target - base) / span
    w_0, w_1 = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = (w_0 + alpha * (w_1 - w_0)).astype(np.float32)
    fine = np.isfinite(expected)
    assume(fine.any())
    steps = (base, base + span)
    run = two_step_run(tmp_path / "run", first[fine], second[fine], steps)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    extrapolate(open_source(run), target, tmp_path / "out", method="two-point")
    assert load_weights(tmp_path / "out")["w"].tobytes() == expected[fine].tobytes()


@pytest.mark.parametrize("target", [-100, 50, 150, 350, 700])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16", "float64"])
def test_two_point_rounds_every_tensor_once_to_the_dtype_asked_for(run, store, tmp_path, target, dtype):
    extrapolate(
        store, target, tmp_path / "out", method="two-point", from_step=100, to_step=300, keep=(), dtype=dtype
    )
    rules = rules_of(tmp_path / "out")
    assert rules == {name: "copy" if name in COPIED else "extrapolate" for name in MODEL}
    alpha = (target - 100) / 200
    assert_predicts(
        tmp_path / "out",
        [weights_at(step, MODEL) for step in (100, 300)],
        [1.0 - alpha, alpha],
        rules,
        None if dtype is None else from_zarr(dtype),
    )


@pytest.mark.parametrize("method", LINES)
@pytest.mark.parametrize("target", [-150, 250, 900])
def test_every_method_is_its_coefficients_applied(store, tmp_path, method, target):
    extrapolate(store, target, tmp_path / "out", method=method, keep=())
    coefficients = METHODS[method].function(np.array(STEPS, np.float64), float(target), None)
    trajectories = [weights_at(step, MODEL) for step in STEPS]
    assert_predicts(tmp_path / "out", trajectories, coefficients, rules_of(tmp_path / "out"))


@pytest.mark.parametrize("target", [37, 500, 1000])
def test_ols_is_the_value_of_the_fitted_line(store, tmp_path, target):
    extrapolate(store, target, tmp_path / "out")
    found = load_weights(tmp_path / "out")
    trajectories = {name: np.array([weights_at(step, MODEL)[name] for step in STEPS]) for name in MODEL}
    num_checked = 0
    for name, values in found.items():
        if name in COPIED or values.size == 0:
            continue
        rows = trajectories[name].reshape(len(STEPS), -1)
        dtype = from_numpy(values.dtype)
        fitted = np.polyval(np.polyfit(STEPS, rows.astype(np.float64), 1), target)
        for i, value in enumerate(np.ravel(values)):
            exact = fitted_value(STEPS, rows[:, i], target)
            assert float(exact) == pytest.approx(fitted[i], rel=1e-9, abs=1e-12)
            if dtype.zarr != "float64" and not is_near_tie(exact, dtype, 1e-15):
                assert float(value) == nearest(exact, dtype), name
                num_checked += 1
            assert float(value) == pytest.approx(float(exact), rel=2.0**-dtype.mantissa_bits)
    assert num_checked > 100


@pytest.mark.parametrize("target", [-30, 250, 731])
def test_ols_over_two_checkpoints_is_two_point(store, tmp_path, target):
    extrapolate(store, target, tmp_path / "ols", steps="100,300")
    extrapolate(store, target, tmp_path / "two-point", method="two-point", steps="100,300", keep=())
    assert load_bytes(tmp_path / "ols") == load_bytes(tmp_path / "two-point")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(LINES),
    slopes=st.lists(st.integers(-50, 50), min_size=1, max_size=20),
    intercept=st.integers(1000, 5000),
    steps=st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True).map(sorted),
    target=st.integers(0, 60),
)
def test_an_exactly_linear_trajectory_is_continued_exactly(tmp_path, method, slopes, intercept, steps, target):
    values = {s: (np.array(slopes) * s + intercept).astype(np.float32) for s in [*steps, target]}
    assume((np.abs(values[target]) >= 1).all())  # at zero the last bits of the coefficients would show
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    for step in steps:
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", {"w": values[step]}, config=None)
    extrapolate(open_source(tmp_path / "run"), target, tmp_path / "out", method=method)
    assert load_weights(tmp_path / "out")["w"].tolist() == values[target].tolist()


# Observed steps


@pytest.mark.parametrize("source_kind", ["run", "store"])
@pytest.mark.parametrize(("target", "method"), [(100, "two-point"), (300, "two-point"), (300, "anchored")])
def test_at_an_end_of_the_window_that_checkpoint_comes_back_byte_for_byte(
    run, store, tmp_path, source_kind, target, method
):
    source = store if source_kind == "store" else open_source(run)
    options = {"from_step": 100, "to_step": 300} if method == "two-point" else {"steps": "100:300"}
    result = extrapolate(source, target, tmp_path / "out", method=method, keep=(), **options)
    original = file_contents(run / f"checkpoint-{target}")
    found = file_contents(tmp_path / "out")
    assert {name: found[name] for name in original} == original
    assert found.keys() - original.keys() == {"ckptlin.json", "README.md"}
    assert result.num_params == 0
    assert set(rules_of(tmp_path / "out").values()) == {"copy"}
    card = found["README.md"].decode()
    assert f"# Step {target}, copied" in card
    assert "not trained" not in card


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"]
)
def test_a_copy_keeps_every_bit_that_a_number_can_have(tmp_path, name):
    dtype = from_zarr(name)
    special = np.array(special_bits(dtype), dtype.bits).view(dtype.numpy)
    run = two_step_run(tmp_path / "run", special, special[::-1].copy())
    for target, expected in ((0, special), (100, special[::-1])):
        out = tmp_path / f"out-{target}"
        extrapolate(open_source(run), target, out, method="two-point", keep=())
        assert load_weights(out)["w"].tobytes() == expected.tobytes()


def test_minus_zero_stays_minus_zero_also_where_norms_are_kept(tmp_path):
    values = np.float32([-0.0, 0.0, 1.0])
    for step, factor in ((0, 1), (100, 2)):
        weights = {"w": values * np.float32(factor), "norm.weight": values}
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights)
    extrapolate(open_source(tmp_path / "run"), 100, tmp_path / "out", method="two-point")
    found = load_weights(tmp_path / "out")
    assert found["w"].tobytes() == np.float32([-0.0, 0.0, 2.0]).tobytes()
    assert found["norm.weight"].tobytes() == values.tobytes()


def test_a_copy_may_be_divided_into_files_anew(run, tmp_path):
    extrapolate(open_source(run), 400, tmp_path / "out", method="two-point", keep=(), max_shard_bytes=100)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_same_weights(load_weights(tmp_path / "out"), weights_at(400, MODEL))


# Blocks, workers, sources


@pytest.mark.parametrize("options", [{}, {"min_r2": 0.6}, {"dtype": "float32"}], ids=str)
@pytest.mark.parametrize("method", LINES)
def test_chunks_workers_and_source_make_no_difference(run, store, tmp_path, monkeypatch, method, options):
    monkeypatch.setattr(ckptlin.ingest_plan, "param_chunk_shape", lambda shape: param_chunk_shape(shape, 7))
    ingest(run, tmp_path / "finely-cut")

    def cut(size):
        return RunTrajectories(
            discover(run), partition=lambda spec: blocks_of(spec, param_chunk_shape(spec.shape, size))
        )

    sources = [(store, 4), (open_source(run), 1), (cut(1), 3), (cut(5), 2)]
    sources.append((TrajectoryStore(tmp_path / "finely-cut"), 2))
    contents = []
    for i, (source, num_workers) in enumerate(sources):
        out = tmp_path / str(i)
        result = extrapolate(source, 650, out, method=method, num_workers=num_workers, **options)
        contents.append((load_bytes(out), result.num_lost, result.num_gated))
    assert all(content == contents[0] for content in contents)


@pytest.mark.parametrize("method", LINES)
def test_forty_steps_are_streamed_through_rows_of_chunks(long_run, tmp_path, method):
    store = TrajectoryStore(long_run.with_name("store"))
    assert len(store.steps) > 2 * store.record.chunk_steps
    for steps in (None, "0:390:30", "200:"):
        window = (
            list(store.steps)
            if steps is None
            else [*range(0, 391, 30)]
            if "30" in steps
            else [*range(200, 391, 10)]
        )
        for name, source in (("store", store), ("run", open_source(long_run))):
            extrapolate(source, 600, tmp_path / name, method=method, steps=steps, keep=(), overwrite=True)
        assert load_bytes(tmp_path / "store") == load_bytes(tmp_path / "run")
        coefficients = METHODS[method].function(np.array(window, np.float64), 600.0, None)
        trajectories = [weights_at(step, MODEL) for step in window]
        assert_predicts(tmp_path / "store", trajectories, coefficients, rules_of(tmp_path / "store"))


# The gate on R²


def r2_of(steps, rows):
    x = np.array(steps, np.float64) - np.mean(steps)
    y = np.asarray(rows).reshape(len(steps), -1).astype(np.float64)
    y = y - y.mean(axis=0)
    with np.errstate(invalid="ignore"):  # a weight that never changed has no R²
        return (x @ y) ** 2 / ((x @ x) * (y**2).sum(axis=0))


@pytest.fixture(scope="module", params=[5, 40])
def noisy_run(request, tmp_path_factory) -> Path:
    """Steps so close that noise is as large as drift, and bfloat16 leaves some weights unchanged."""
    root = tmp_path_factory.mktemp("noisy") / "run"
    for step in range(request.param):
        save_checkpoint(root / f"checkpoint-{step}", weights_at(step, MODEL))
    return root


@pytest.mark.parametrize("method", LINES)
def test_parameters_under_the_gate_keep_their_last_value_and_the_others_do_not(noisy_run, tmp_path, method):
    source = open_source(noisy_run)
    trajectories = {
        name: np.array([weights_at(step, MODEL)[name] for step in source.steps])
        for name in MODEL.keys() - COPIED
    }
    # In the widest gap near the middle of all R², so that rounding decides nothing.
    every = np.concatenate([r2_of(source.steps, rows) for rows in trajectories.values()])
    every = np.sort(every[~np.isnan(every)])
    middle = every[len(every) // 4 : -(len(every) // 4)]
    widest = int(np.argmax(np.diff(middle)))
    threshold = float(middle[widest : widest + 2].mean())
    assert np.diff(middle)[widest] > 1e-4
    result = extrapolate(source, 80, tmp_path / "out", method=method, keep=(), min_r2=threshold)
    coefficients = METHODS[method].function(np.array(source.steps, np.float64), 80.0, None)
    found = load_weights(tmp_path / "out")
    num_gated = 0
    for name, rows in trajectories.items():
        r2 = r2_of(source.steps, rows)
        expected = as_rounded(predict(rows, coefficients), from_numpy(rows.dtype)).ravel()
        last = rows[-1].astype(np.float64).ravel()
        values = found[name].astype(np.float64).ravel()
        np.testing.assert_array_equal(values, np.where(r2 >= threshold, expected, last), err_msg=name)
        num_gated += int((r2 < threshold).sum())
    assert 30 < num_gated < len(every) - 30
    assert result.num_gated == num_gated == result.record["params_held_by_gate"]


def test_parameters_that_never_changed_are_not_said_to_be_held(tmp_path):
    run = tmp_path / "run"
    for step in (0, 100, 200):
        save_checkpoint(
            run / f"checkpoint-{step}", {"w": np.float32([1.0, -0.0, step / 100, 7 * (step == 100)])}
        )
    result = extrapolate(open_source(run), 300, tmp_path / "out", min_r2=0.5)
    assert load_weights(tmp_path / "out")["w"].tobytes() == np.float32([1.0, -0.0, 3.0, 0.0]).tobytes()
    assert result.num_gated == 1


@pytest.mark.parametrize("min_r2", [-0.1, 1.1, math.nan])
def test_a_gate_outside_of_zero_to_one_is_refused(store, tmp_path, min_r2):
    with pytest.raises(InputError, match="--min-r2 must lie between 0 and 1"):
        extrapolate(store, 800, tmp_path / "out", min_r2=min_r2)


@pytest.mark.parametrize("step", [0, 200, 400])
@pytest.mark.parametrize("options", [{}, {"min_r2": 0.9}, {"method": "two-point", "min_r2": 0.5}], ids=str)
def test_a_weight_that_is_no_number_is_named_and_the_gate_does_not_hide_it(tmp_path, step, options):
    for s in STEPS:
        weights = {"a": np.ones(40, np.float32) * s, "b": np.ones((3, 4), np.float32) * s}
        if s == step:
            weights["b"][0, :3] = np.nan
            weights["b"][2, 1] = np.inf
        save_checkpoint(tmp_path / "run" / f"checkpoint-{s}", weights)
    source = RunTrajectories(
        discover(tmp_path / "run"), partition=lambda spec: blocks_of(spec, param_chunk_shape(spec.shape, 2))
    )
    with pytest.raises(NonFiniteError) as raised:
        extrapolate(source, 800, tmp_path / "out", **options)
    assert str(raised.value) == (
        f"tensor `b` of {tmp_path / 'run'} has 3 NaN and 1 infinite weights at step {step}; leave the step out "
        "with --steps, or let the tensor keep its last value with --keep"
    )
    assert os.listdir(tmp_path) == ["run"]


def test_a_nan_of_ones_does_not_become_zero_in_bfloat16(tmp_path):
    ones = np.array([0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    run = two_step_run(tmp_path / "run", ones, ones)
    with pytest.raises(NonFiniteError, match="2 NaN weights at step 0"):
        extrapolate(open_source(run), 300, tmp_path / "out", dtype="bfloat16")


def test_a_tensor_that_keeps_its_value_keeps_a_nan_too(tmp_path):
    for step in (0, 100):
        weights = {
            "norm": np.array([0x7FFFFFFF, 0x3F800000], np.uint32).view(np.float32),
            "w": np.float32([step]),
        }
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights)
    for dtype, out in ((None, "same"), ("bfloat16", "narrow")):
        extrapolate(open_source(tmp_path / "run"), 200, tmp_path / out, keep=["norm"], dtype=dtype)
    assert load_weights(tmp_path / "same")["norm"].view(np.uint32).tolist() == [0x7FFFFFFF, 0x3F800000]
    narrow = load_weights(tmp_path / "narrow")["norm"].astype(np.float64)
    assert np.isnan(narrow[0])
    assert narrow[1] == 1.0
