"""Which tensors an extrapolation changes, what it writes beside them, and where."""

import json
import math
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ckptlin.dtypes import from_numpy, from_zarr
from ckptlin.errors import InputError, NonFiniteError, OutputExistsError, SelectionError
from ckptlin.extrapolate import extrapolate, plan_extrapolation
from ckptlin.ingest import ingest
from ckptlin.methods import METHODS
from ckptlin.progress import NO_PROGRESS
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.extrapolation import (
    COPIED,
    MODEL,
    NORMS,
    STEPS,
    assert_predicts,
    assert_same_weights,
    load_bytes,
    rules_of,
    two_step_run,
)
from tests.runs import file_contents, save_checkpoint, weights_at
from tests.tiny_models import load_weights


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
    extrapolate(store, 800, tmp_path / "out", method="ols", keep=keep)
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
    result = extrapolate(
        store, 700, tmp_path / "out", method="ols", steps="100:", keep=["norm"], min_r2=0.3, dtype="float32"
    )
    record = json.loads((tmp_path / "out/ckptlin.json").read_text())
    assert record == result.record
    window = [100, 200, 300, 400]
    coefficients = METHODS["ols"].function(np.array(window, np.float64), 700.0, None)
    expected = {
        "source": store.location,
        "step": 700,
        "method": "ols",
        "auto": False,
        "reason": None,
        "expected": None,
        "interval": None,
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
    result = extrapolate(store, 900, tmp_path / "out", method="ols", keep=["norm"], min_r2=0.5)
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

    result = extrapolate(store, target, tmp_path / "out", method="ols", steps=steps, progress=Notes())
    (warning,) = result.warnings
    assert warning.startswith(f"step {target} reaches {reach} times the observed span (0 to ")
    assert "evaluate this checkpoint before you use it" in warning
    assert noted == [warning]
    assert result.to_dict()["warnings"] == [warning]
    plan = plan_extrapolation(store, target, tmp_path / "other", method="ols", steps=steps)
    assert plan.warnings == (warning,)


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
    twice = {name for name, rule in plan.rules.items() if rule == "extrapolate"}
    assert shown["bytes_in"] == sum((1 + (t.name in twice)) * t.num_bytes for t in store.tensors.values())
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "olz"}, "there is no method 'olz'"),
        ({"steps": "100:100"}, "method ols needs at least 2 checkpoints, and only one was selected"),
        ({"steps": "0,150"}, "step 150 of --steps 0,150 does not exist among 5 steps, 0 to 400"),
        ({"from_step": 0}, "--from and --to belong to the method two-point, not to auto; use --steps"),
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

    # A shell ignores SIGINT for what it runs in the background, and Python inherits that.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Interrupt()
    signal.signal(signal.SIGINT, former)


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
