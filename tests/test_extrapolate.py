import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ckptlin.ingest_plan
from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.dtypes import from_numpy, from_zarr
from ckptlin.errors import InputError, NonFiniteError, OutputExistsError, SelectionError
from ckptlin.extrapolate import extrapolate, plan_extrapolation
from ckptlin.ingest import ingest
from ckptlin.methods import METHODS
from ckptlin.progress import NO_PROGRESS
from ckptlin.source import open_source
from ckptlin.store.layout import blocks_of, param_chunk_shape
from ckptlin.store.store import TrajectoryStore
from tests.exact import fitted_value, is_near_tie, nearest
from tests.runs import MODEL as PLAIN_MODEL
from tests.runs import file_contents, save_checkpoint, weights_at
from tests.strategies import bits as bits_of
from tests.tiny_models import load_weights

STEPS = (0, 100, 200, 300, 400)
MODEL = {
    **PLAIN_MODEL,
    "model.layers.0.input_layernorm.weight": ((5,), ml_dtypes.bfloat16),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ((4,), np.float32),
    "model.mask": ((3,), np.bool_),
}
COPIED = {"model.counts", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.mask"}
NORMS = {"model.norm.weight", "model.layers.0.input_layernorm.weight"}
F32 = from_zarr("float32")
finite_bits = bits_of(F32).filter(lambda word: word & 0x7F800000 != 0x7F800000)


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


def predict(rows, coefficients):
    """The weighted sum, as `ckptlin.kernels.weighted_sum` defines it, in numpy's float64."""
    rows = np.asarray(rows).astype(np.float64)
    reference = rows[np.flatnonzero(coefficients)[0]]
    moved = sum(a * (row - reference) for a, row in zip(coefficients, rows, strict=True) if a != 0.0)
    return reference + moved


def as_rounded(values, dtype):
    flat = np.ravel(values)
    return np.array([nearest(Fraction(v), dtype) for v in flat], np.float64).reshape(np.shape(values))


def assert_predicts(out: Path, trajectories, coefficients, rules, dtype=None):
    """Assert that a checkpoint holds the weighted sum, or the last value, of every tensor."""
    found = load_weights(out)
    assert found.keys() == trajectories[0].keys() == rules.keys()
    for name, values in found.items():
        rows = [weights[name] for weights in trajectories]
        source = rows[-1].dtype
        is_float = np.issubdtype(source, np.floating) or source == ml_dtypes.bfloat16
        expected_dtype = dtype.numpy if dtype is not None and is_float else source
        assert values.dtype == expected_dtype, name
        if rules[name] == "extrapolate":
            expected = as_rounded(predict(rows, coefficients), from_numpy(expected_dtype))
        elif is_float:
            expected = as_rounded(rows[-1].astype(np.float64), from_numpy(expected_dtype))
        else:
            expected = rows[-1]
        np.testing.assert_array_equal(values.astype(np.float64), expected, err_msg=name)


def rules_of(out: Path) -> dict[str, str]:
    return json.loads((out / "ckptlin.json").read_text())["tensors"]


def two_step_run(root: Path, first, second, steps=(0, 100), name="w") -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for step, values in zip(steps, (first, second), strict=True):
        save_checkpoint(root / f"checkpoint-{step}", {name: np.asarray(values)}, config=None)
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


@pytest.mark.parametrize("method", sorted(METHODS))
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


def load_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors*")}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(sorted(METHODS)),
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
    from tests.strategies import special_bits

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


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes(), name


# Blocks, workers, sources


@pytest.mark.parametrize("options", [{}, {"min_r2": 0.6}, {"dtype": "float32"}], ids=str)
@pytest.mark.parametrize("method", sorted(METHODS))
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


@pytest.mark.parametrize("method", sorted(METHODS))
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


@pytest.mark.parametrize("method", sorted(METHODS))
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


# Which tensors


def test_two_point_keeps_the_norms_of_the_second_checkpoint_by_default(store, tmp_path):
    result = extrapolate(store, 800, tmp_path / "out", method="two-point", from_step=0, to_step=300)
    rules = rules_of(tmp_path / "out")
    assert {name for name, rule in rules.items() if rule == "keep"} == NORMS
    assert {name for name, rule in rules.items() if rule == "copy"} == COPIED
    assert result.record["keep"] == ["norm"]
    alpha = 800 / 300
    trajectories = [weights_at(step, MODEL) for step in (0, 300)]
    assert_predicts(tmp_path / "out", trajectories, [1.0 - alpha, alpha], rules)


def test_the_norms_come_from_the_second_checkpoint_also_when_the_target_is_the_first(store, tmp_path):
    extrapolate(store, 0, tmp_path / "out", method="two-point")
    found = load_weights(tmp_path / "out")
    for name, values in found.items():
        origin = 400 if name in NORMS | COPIED else 0
        assert values.tobytes() == weights_at(origin, MODEL)[name].tobytes(), name


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (["model.scale"], {"model.scale"}),
        (["*.up_proj.weight", "embed"], {"model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"}),
        (["counts"], set()),  # an integer is copied whatever a pattern says
    ],
)
def test_patterns_name_tensors_that_keep_their_last_value(store, tmp_path, keep, kept):
    extrapolate(store, 800, tmp_path / "out", keep=keep)
    rules = rules_of(tmp_path / "out")
    assert {name for name, rule in rules.items() if rule == "keep"} == kept
    coefficients = METHODS["ols"].function(np.array(STEPS, np.float64), 800.0, None)
    assert_predicts(tmp_path / "out", [weights_at(step, MODEL) for step in STEPS], coefficients, rules)


@pytest.mark.parametrize("pattern", ["embed_tokenz", "model.layers.1.*"])
def test_a_pattern_that_matches_nothing_is_refused(store, tmp_path, pattern):
    with pytest.raises(SelectionError, match=r"--keep '.*' matches none of the 10 tensors"):
        extrapolate(store, 800, tmp_path / "out", keep=["norm", pattern])


def test_an_empty_pattern_is_refused(store, tmp_path):
    with pytest.raises(SelectionError, match="--keep was given an empty pattern"):
        extrapolate(store, 800, tmp_path / "out", keep=[""])


def test_the_default_pattern_may_match_nothing(tmp_path):
    run = two_step_run(tmp_path / "run", np.float32([1]), np.float32([2]))
    extrapolate(open_source(run), 200, tmp_path / "out", method="two-point")
    assert load_weights(tmp_path / "out")["w"].tolist() == [3.0]


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, None])
def test_a_tied_name_goes_with_the_tensor_it_is_tied_to(tmp_path, config):
    """Kept by either name: as an alias without bytes, or with bytes of its own."""
    for step in (0, 100):
        embedding = np.full((4, 2), step, np.float32)
        weights = {"model.embed_tokens.weight": embedding, "w": np.float32([step])}
        if config is None:
            weights["lm_head.weight"] = embedding.copy()
        save_checkpoint(
            tmp_path / "run" / f"checkpoint-{step}", weights, config or {"tie_word_embeddings": True}
        )
    ingest(tmp_path / "run", tmp_path / "store")
    store = TrajectoryStore(tmp_path / "store")
    assert store.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    for i, pattern in enumerate(("embed", "lm_head")):
        out = tmp_path / str(i)
        extrapolate(store, 200, out, keep=[pattern])
        found = load_weights(out)
        assert found.pop("w").tolist() == [200.0]
        assert {values.max() for values in found.values()} == {100.0}


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_refused_with_advice_unless_it_is_kept(tmp_path, name):
    dtype = from_zarr(name).numpy
    for step in (0, 100):
        weights = {"q.weight": np.array([1, 2], dtype), "w": np.float32([step])}
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", weights)
    source = open_source(tmp_path / "run")
    with pytest.raises(InputError, match=f"tensor `q.weight` is {name}.*dequantise.*--keep"):
        extrapolate(source, 200, tmp_path / "out")
    extrapolate(source, 200, tmp_path / "out", keep=["q.weight"], dtype="float32")
    found = load_weights(tmp_path / "out")
    assert found["q.weight"].dtype == dtype
    assert found["w"].tolist() == [200.0]


# The range and the dtype


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.float16([1, 40000]), None),
        (np.float32([1, 3e38]), None),
        (np.array([1, 3e38], ml_dtypes.bfloat16), None),
        (np.float64([1, 1e308]), None),
        (np.float32([1, 40000]), "float16"),
        (np.float64([1, 2e38]), "bfloat16"),
    ],
    ids=["float16", "float32", "bfloat16", "float64", "float32 to float16", "float64 to bfloat16"],
)
def test_a_prediction_beyond_the_range_of_the_dtype_is_refused(tmp_path, values, dtype):
    run = two_step_run(tmp_path / "run", values * values.dtype.type(0), values)
    name = dtype or from_numpy(values.dtype).zarr
    with pytest.raises(NonFiniteError) as raised:
        extrapolate(open_source(run), 300, tmp_path / "out", dtype=dtype)
    assert str(raised.value) == (
        f"the prediction of tensor `w` for step 300 has 1 value beyond the range of {name}; "
        "choose a nearer step, or a wider --dtype"
    )
    assert os.listdir(tmp_path) == ["run"]


def test_a_kept_value_beyond_the_range_of_the_dtype_is_refused_too(tmp_path):
    run = two_step_run(tmp_path / "run", np.float32([1, 1e6]), np.float32([1, 1e6]))
    with pytest.raises(
        NonFiniteError, match="tensor `w` has 1 value beyond the range of float16; choose a wider"
    ):
        extrapolate(open_source(run), 300, tmp_path / "out", keep=["w"], dtype="float16")


def test_a_kept_value_is_rounded_once(tmp_path):
    values = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8])
    run = two_step_run(tmp_path / "run", values, values)
    for i, options in enumerate(({"keep": ["w"]}, {"min_r2": 1.0})):
        extrapolate(open_source(run), 300, tmp_path / str(i), dtype="bfloat16", **options)
        found = load_weights(tmp_path / str(i))["w"].astype(np.float64)
        assert found.tolist() == [1 + 2.0**-7, 1.0, 1 + 2.0**-6]


def test_float32_keeps_what_bfloat16_rounds_away_and_the_record_says_how_much(tmp_path):
    unit = 2.0**-7
    first, second = np.array([[1, 1, 1], [1 + 2 * unit, 1 + unit, 1]], ml_dtypes.bfloat16)
    run = two_step_run(tmp_path / "run", first, second)
    narrow = extrapolate(open_source(run), 125, tmp_path / "narrow")
    wide = extrapolate(open_source(run), 125, tmp_path / "wide", dtype="float32")
    assert (narrow.num_lost, wide.num_lost) == (2, 0)
    assert narrow.record["params_unchanged_by_rounding"] == 2
    assert load_weights(tmp_path / "wide")["w"].tolist() == [1 + 2.5 * unit, 1 + 1.25 * unit, 1]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_another_dtype_stands_in_the_configuration(tmp_path, key):
    config = {"architectures": ["A"], key: "bfloat16", "x": "ä"}
    for step in (0, 100):
        save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", {"w": np.ones(2, ml_dtypes.bfloat16)}, config)
    source = open_source(tmp_path / "run")
    extrapolate(source, 200, tmp_path / "same")
    extrapolate(source, 200, tmp_path / "wide", dtype="float32")
    original = (tmp_path / "run/checkpoint-100/config.json").read_bytes()
    assert (tmp_path / "same/config.json").read_bytes() == original
    assert json.loads((tmp_path / "wide/config.json").read_text()) == {**config, key: "float32"}


def test_an_unknown_dtype_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="--dtype 'int8' is not known; choose one of float32, "):
        extrapolate(store, 800, tmp_path / "out", dtype="int8")


# The plan, the record and the card


def test_a_run_without_configuration_and_tokenizer_is_no_error(tmp_path):
    run = two_step_run(tmp_path / "run", np.float32([1]), np.float32([2]))
    ingest(run, tmp_path / "store")
    for name, source in (("a", open_source(run)), ("b", TrajectoryStore(tmp_path / "store"))):
        extrapolate(source, 200, tmp_path / name, dtype="float64")
        assert sorted(os.listdir(tmp_path / name)) == ["README.md", "ckptlin.json", "model.safetensors"]


def test_the_record_says_how_every_tensor_came_to_be(run, store, tmp_path):
    result = extrapolate(store, 700, tmp_path / "out", steps="100:", keep=["norm"], min_r2=0.3, dtype="float32")
    record = json.loads((tmp_path / "out/ckptlin.json").read_text())
    assert record == result.record
    window = [100, 200, 300, 400]
    coefficients = METHODS["ols"].function(np.array(window, np.float64), 700.0, None)
    expected = {
        "source": store.location,
        "step": 700,
        "method": "ols",
        "window": window,
        "steps": window,
        "coefficients": coefficients.tolist(),
        "checkpoints": {str(s): str(run / f"checkpoint-{s}") for s in window},
        "fingerprints": {str(c.step): c.fingerprint for c in store.checkpoints[1:]},
        "keep": ["norm"],
        "min_r2": 0.3,
        "dtype": "float32",
        "params_extrapolated": sum(
            math.prod(shape) for name, (shape, _) in MODEL.items() if name not in COPIED | NORMS
        ),
    }
    assert {name: record[name] for name in expected} == expected
    assert record["created_by"].startswith("ckptlin ")
    rules = {name: "copy" if name in COPIED else "keep" if name in NORMS else "extrapolate" for name in MODEL}
    assert record["tensors"] == rules


def test_two_point_records_the_two_checkpoints_that_it_used_and_the_window_between(store, tmp_path):
    record = extrapolate(store, 800, tmp_path / "out", method="two-point", from_step=100, to_step=300).record
    assert record["window"] == [100, 200, 300]
    assert record["steps"] == [100, 300]
    assert record["coefficients"] == [-2.5, 3.5]


def test_the_model_card_says_what_the_record_says(store, tmp_path):
    result = extrapolate(store, 900, tmp_path / "out", keep=["norm"], min_r2=0.5)
    card = (tmp_path / "out/README.md").read_text()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert "- extrapolated" in head
    assert "library_name: transformers" in head
    assert "# Step 900, extrapolated" in body
    assert "These weights were not trained." in body
    assert f"5 checkpoints at steps 0 to 400 of `{store.location}`, by `ols`" in body
    lost = result.num_lost
    assert f"| parameters extrapolated | {result.num_params} |" in body
    assert f"by rounding | {lost} ({lost / result.num_params:.1%}) |" in body
    assert f"by the R² gate | {result.num_gated} |" in body
    assert "| tensors kept at the last checkpoint | 2 (norm) |" in body
    assert f"**Warning:** {result.warnings[0]}.\n" in body


def test_a_card_of_tensors_that_were_all_kept_does_not_speak_of_a_copy(store, tmp_path):
    extrapolate(store, 900, tmp_path / "out", keep=["*"])
    card = (tmp_path / "out/README.md").read_text()
    assert "| parameters extrapolated | 0 |" in card
    assert "| tensors kept at the last checkpoint | 7 (*) |" in card
    assert "copied" not in card


@pytest.mark.parametrize(
    ("target", "steps", "reach"),
    [(801, None, "2.0"), (1200, None, "3.0"), (-401, None, "2.0"), (-800, None, "3.0"), (400, "0:100", "4.0")],
)
def test_beyond_twice_the_span_there_is_a_warning(store, tmp_path, target, steps, reach):
    noted = []

    class Notes(type(NO_PROGRESS)):
        def note(self, message):
            noted.append(message)

    result = extrapolate(store, target, tmp_path / "out", steps=steps, progress=Notes())
    (warning,) = result.warnings
    assert warning.startswith(f"step {target} reaches {reach} times the observed span (0 to ")
    assert "evaluate this checkpoint before you use it" in warning
    assert noted == [warning]
    assert result.to_dict()["warnings"] == [warning]
    assert plan_extrapolation(store, target, tmp_path / "other", steps=steps).warnings == (warning,)


@pytest.mark.parametrize("target", [-400, 0, 250, 400, 800])
def test_up_to_twice_the_span_there_is_none(store, tmp_path, target):
    assert plan_extrapolation(store, target, tmp_path / "out").warnings == ()


def test_a_plan_says_what_would_happen_and_writes_nothing(store, tmp_path):
    plan = plan_extrapolation(store, 700, tmp_path / "a" / "out", method="two-point", dtype="float64")
    shown = plan.to_dict()
    extrapolate(store, 700, tmp_path / "b", method="two-point", dtype="float64")
    assert shown["bytes_out"] == (tmp_path / "b" / "model.safetensors").stat().st_size
    assert shown["tensors"] == {"extrapolate": 5, "keep": 2, "copy": 3}
    assert shown["steps"] == [0, 400]
    assert shown["bytes_in"] == 2 * sum(t.num_bytes for t in store.tensors.values())
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "olz"}, "there is no method 'olz'"),
        ({"steps": "100:100"}, "method ols needs at least 2 checkpoints, and only one was selected"),
        ({"steps": "0,150"}, "step 150 of --steps 0,150 does not exist among 5 steps, 0 to 400"),
        ({"from_step": 0}, "--from and --to belong to the method two-point, not to ols; use --steps"),
        ({"method": "two-point", "from_step": 50}, "--from 50 does not exist; .* has 5 steps, 0 to 400"),
        ({"method": "two-point", "to_step": 50}, "--to 50 does not exist"),
        ({"method": "two-point", "from_step": 300, "to_step": 300}, "--from 300 must lie before --to 300"),
        ({"num_workers": 0}, "--workers must be at least 1, not 0"),
        ({"max_shard_bytes": 0}, "must be positive"),
    ],
)
def test_options_that_make_no_sense_are_refused(store, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        extrapolate(store, 800, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


def test_a_step_beyond_what_float64_counts_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="is no step"):
        extrapolate(store, 10**400, tmp_path / "out")


# The directory


@pytest.fixture
def interrupted():
    """A progress whose first report of bytes comes with a Ctrl-C."""

    class Interrupt(type(NO_PROGRESS)):
        @contextmanager
        def phase(self, title, num_bytes):
            yield lambda num_bytes: signal.raise_signal(signal.SIGINT)

    return Interrupt()


@pytest.mark.parametrize("is_there", [False, True])
def test_an_interrupt_leaves_what_was_there_and_nothing_half_made(run, store, tmp_path, interrupted, is_there):
    out = tmp_path / "out"
    if is_there:
        shutil.copytree(run / "checkpoint-0", out)
    before = file_contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        extrapolate(store, 700, out, overwrite=True, progress=interrupted)
    assert file_contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["out"] if is_there else [])


def test_an_output_that_exists_is_replaced_only_on_request(run, store, tmp_path):
    out = tmp_path / "out"
    extrapolate(store, 700, out)
    first = file_contents(out)
    with pytest.raises(OutputExistsError, match="is there already; give another directory, or --overwrite"):
        extrapolate(store, 800, out)
    assert file_contents(out) == first
    extrapolate(store, 800, out, overwrite=True)
    extrapolate(store, 800, tmp_path / "fresh")
    assert load_bytes(out) == load_bytes(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "out"]


@pytest.mark.parametrize("where", ["run", "run/checkpoint-0/x", "store"])
def test_a_run_or_a_store_is_never_replaced(run, store, tmp_path, where):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/checkpoint-0/x").write_text("a file")
    shutil.copytree(store.path, tmp_path / "store")
    before = file_contents(tmp_path)
    with pytest.raises(OutputExistsError, match="give another"):
        extrapolate(store, 800, tmp_path / where, overwrite=True)
    assert file_contents(tmp_path) == before


def test_a_lone_file_of_another_name_becomes_one_that_loads(tmp_path):
    for step in (0, 100):
        directory = save_checkpoint(tmp_path / "run" / f"checkpoint-{step}", {"w": np.float32([step])})
        (directory / "model.safetensors").rename(directory / "weights.safetensors")
    extrapolate(open_source(tmp_path / "run"), 200, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors*")) == ["model.safetensors"]


def test_the_form_is_that_of_the_last_checkpoint_used(tmp_path):
    """Checkpoints of a run may be divided differently, and name their tensors in another order."""
    import safetensors.numpy

    a, b = np.float32([1, 2]), np.float64([3])
    save_checkpoint(tmp_path / "run/checkpoint-0", {"a": a, "b": b})
    directory = tmp_path / "run/checkpoint-100"
    directory.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    safetensors.numpy.save_file({"b": 2 * b}, directory / names[0], metadata={"format": "pt", "x": "y"})
    safetensors.numpy.save_file({"a": 2 * a}, directory / names[1], metadata={"format": "pt"})
    index = {"metadata": {"total_size": 16}, "weight_map": {"b": names[0], "a": names[1]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    ingest(tmp_path / "run", tmp_path / "store")
    for i, source in enumerate((open_source(tmp_path / "run"), TrajectoryStore(tmp_path / "store"))):
        extrapolate(source, 200, tmp_path / f"later-{i}")
        found = file_contents(tmp_path / f"later-{i}")
        assert sorted(name for name in found if name.endswith("safetensors")) == names
        assert found[names[0]][:100] == (directory / names[0]).read_bytes()[:100]
        assert_same_weights(load_weights(tmp_path / f"later-{i}"), {"a": 3 * a, "b": 3 * b})
        extrapolate(source, 0, tmp_path / f"first-{i}", method="two-point", keep=())
        assert load_bytes(tmp_path / f"first-{i}") == load_bytes(tmp_path / "run/checkpoint-0")
