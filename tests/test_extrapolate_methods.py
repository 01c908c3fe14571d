"""Every method, with coefficients of each tensor: applied, recorded, and judged as the Gram matrix says."""

import json

import numpy as np
import pytest
import torch

from ckptlin.coefficients import coefficients_of
from ckptlin.dtypes import from_numpy
from ckptlin.errors import InputError, SelectionError
from ckptlin.extrapolate import extrapolate, plan_extrapolation
from ckptlin.gram import gram, read_gram
from ckptlin.gram_matrices import GramMatrices
from ckptlin.ingest import ingest
from ckptlin.methods import METHODS, MethodEntry, MethodSpec, parse_method
from ckptlin.progress import NO_PROGRESS
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.extrapolation import as_rounded, load_bytes, predict, rules_of
from tests.grams import grams_of
from tests.runs import save_checkpoint
from tests.saved_training import save_trained_run
from tests.tiny_models import load_weights

SPECS = [
    *sorted(METHODS),
    "wls:decay=0.3",
    "polynomial:degree=3",
    "relex:rank=2",
    "dmd:rank=2",
    "damped:base=ols",
]
WINDOW = "0:24"  # 7 of 13 checkpoints, 0 to 48 every 4
SEEN = tuple(range(0, 25, 4))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained")
    save_trained_run(path, (torch.float32, torch.bfloat16))
    for name in ("float32", "bfloat16"):
        ingest(path / name, path / f"{name}.store")
    gram(TrajectoryStore(path / "float32.store"))
    return path


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request, root):
    return root / request.param


@pytest.fixture
def store(root):
    """A store that keeps the Gram matrices of all its steps."""
    return TrajectoryStore(root / "float32.store")


def weights_of(run, steps=SEEN):
    loaded = [load_weights(run / f"checkpoint-{step}") for step in steps]
    return {name: np.stack([weights[name] for weights in loaded]) for name in loaded[0]}


def recorded(record, tensor):
    """The coefficients that the record gives a tensor."""
    found = record["coefficients"]
    return np.array(found[tensor] if isinstance(found, dict) else found)


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("target", [36, 10])
def test_each_tensor_is_its_own_coefficients_applied(run, tmp_path, method, target):
    result = extrapolate(open_source(run), target, tmp_path / "out", method=method, steps=WINDOW, keep=())
    record = json.loads((tmp_path / "out/ckptlin.json").read_text())
    assert record == result.record
    assert record["method"] == str(parse_method(method))
    spec, trajectories = parse_method(method), weights_of(run)
    grams = grams_of(SEEN, trajectories)
    found = load_weights(tmp_path / "out")
    for name, rows in trajectories.items():
        mine = recorded(record, name)
        given = np.zeros(len(SEEN))
        given[[SEEN.index(step) for step in record["steps"]]] = mine
        expected = spec.coefficients(SEEN, target, grams.matrices[name], grams.total())
        # Products of moves are summed in float32 over 256 parameters.
        scale = np.abs(expected).max()
        np.testing.assert_allclose(given / scale, expected / scale, rtol=0, atol=1e-4, err_msg=name)
        values = as_rounded(predict(rows, given), from_numpy(rows.dtype))
        np.testing.assert_array_equal(found[name].astype(np.float64), values, err_msg=name)


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("held_out", [32, 48])
def test_the_distance_to_the_trained_checkpoint_is_what_the_gram_matrix_says(run, tmp_path, method, held_out):
    """In float32 the error of the weights that were written; c = a − e_h over all steps, up to the target."""
    extrapolate(
        open_source(run), held_out, tmp_path / "out", method=method, steps=WINDOW, keep=(), dtype="float32"
    )
    record = json.loads((tmp_path / "out/ckptlin.json").read_text())
    steps = (*SEEN, held_out)
    trajectories = weights_of(run, steps)
    grams = gram(open_source(run), steps=",".join(map(str, steps)))
    found = load_weights(tmp_path / "out")
    said = really = 0.0
    for name, rows in trajectories.items():
        c = np.zeros(len(steps))
        c[[steps.index(step) for step in record["steps"]]] = recorded(record, name)
        c[-1] -= 1.0
        said += c @ grams.matrices[name] @ c
        really += ((found[name].astype(np.float64) - rows[-1].astype(np.float64)) ** 2).sum()
    assert said == pytest.approx(really, rel=1e-4)


@pytest.mark.parametrize("method", ["damped", "relex", "dmd"])
def test_a_store_a_run_and_given_matrices_write_the_same_bytes(root, store, tmp_path, method):
    plain = tmp_path / "plain.store"
    ingest(root / "float32", plain)
    kept = read_gram(store)
    sources = [
        (store, None),
        (TrajectoryStore(plain), None),
        (open_source(root / "float32"), None),
        (open_source(root / "float32"), kept),
    ]
    contents = []
    for i, (source, grams) in enumerate(sources):
        extrapolate(source, 36, tmp_path / str(i), method=method, grams=grams, num_workers=1 + i % 2)
        contents.append((load_bytes(tmp_path / str(i)), recorded_all(tmp_path / str(i))))
    assert all(content == contents[0] for content in contents)
    assert TrajectoryStore(plain).record.gram is None


def recorded_all(out):
    return json.loads((out / "ckptlin.json").read_text())["coefficients"]


@pytest.mark.parametrize("method", ["damped", "relex"])
def test_gate_and_patterns_combine_with_coefficients_of_each_tensor(root, tmp_path, method):
    source = open_source(root / "float32")
    # Tensors that are kept take no part in what is learned from all of them together.
    extrapolate(source, 36, tmp_path / "free", method=method, steps=WINDOW, keep=["norm"])
    result = extrapolate(source, 36, tmp_path / "held", method=method, steps=WINDOW, keep=["norm"], min_r2=0.8)
    line = extrapolate(source, 36, tmp_path / "line", method="ols", steps=WINDOW, keep=["norm"], min_r2=0.8)
    assert 0 < result.num_gated == line.num_gated < result.num_params
    last = load_weights(root / "float32/checkpoint-24")
    free, held, gated = (load_weights(tmp_path / name) for name in ("free", "held", "line"))
    rules = rules_of(tmp_path / "held")
    for name, values in held.items():
        assert rules[name] == ("keep" if "norm" in name else "extrapolate")
        expected = np.where((gated[name] == last[name]) | ("norm" in name), last[name], free[name])
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_coefficients_that_are_equal_stand_once(root, tmp_path):
    result = extrapolate(open_source(root / "float32"), 36, tmp_path / "ols", method="ols", steps=WINDOW)
    assert isinstance(result.record["coefficients"], list)
    result = extrapolate(open_source(root / "float32"), 36, tmp_path / "damped", method="damped", steps=WINDOW)
    coefficients = result.record["coefficients"]
    assert coefficients.keys() == result.record["tensors"].keys()
    assert len({tuple(vector) for vector in coefficients.values()}) > 1
    card = (tmp_path / "damped/README.md").read_text()
    assert "7 checkpoints at steps 0 to 24" in card
    assert f"`{parse_method('damped')}`: {METHODS['damped'].description}." in card


def test_only_rows_with_a_coefficient_are_read(store, tmp_path):
    raw = sum(t.num_bytes for t in store.tensors.values())
    for method, num_rows in (("lawa:k=3", 3), ("two-point", 2), ("ols", 7), ("damped", 7)):
        plan = plan_extrapolation(store, 36, tmp_path / "out", method=method, steps=WINDOW, keep=())
        assert plan.bytes_in == num_rows * raw, method


def test_without_matrices_the_plan_counts_the_pass_for_them(root, tmp_path):
    source = open_source(root / "float32")
    raw = sum(t.num_bytes for t in source.tensors.values())
    plan = plan_extrapolation(source, 36, tmp_path / "out", method="damped", steps=WINDOW)
    assert plan.coefficients is None
    assert plan.gram_plan.bytes_in == plan.to_dict()["bytes_in_for_gram"] == 7 * raw
    assert plan.bytes_in == 14 * raw
    assert plan.peak_bytes >= plan.gram_plan.memory.peak_bytes
    assert plan.to_dict()["coefficients"] is None
    read = []

    class Told(type(NO_PROGRESS)):
        def phase(self, title, num_bytes):
            read.append((title, num_bytes))
            return super().phase(title, num_bytes)

    extrapolate(source, 36, tmp_path / "out", method="damped", steps=WINDOW, progress=Told())
    assert read == [("gram", 7 * raw), ("extrapolate", 7 * raw)]


def test_a_store_is_told_how_to_keep_them(root, tmp_path):
    ingest(root / "float32", tmp_path / "plain.store")
    noted = []

    class Notes(type(NO_PROGRESS)):
        def note(self, message):
            noted.append(message)

    store = TrajectoryStore(tmp_path / "plain.store")
    extrapolate(store, 36, tmp_path / "out", method="damped", steps=WINDOW, progress=Notes())
    (note,) = noted
    assert "Gram matrices of these steps were computed first" in note
    assert f"`ckptlin gram {store.location}` would keep them" in note
    gram(store)
    extrapolate(
        TrajectoryStore(store.location), 36, tmp_path / "again", method="damped", steps=WINDOW, progress=Notes()
    )
    assert len(noted) == 1
    assert load_bytes(tmp_path / "again") == load_bytes(tmp_path / "out")


def test_matrices_of_other_steps_are_refused(store, tmp_path):
    grams = read_gram(store).window([0, 1, 2])
    with pytest.raises(InputError, match=r"the Gram matrices lack step 12: .* 3 steps, 0 to 8"):
        extrapolate(store, 36, tmp_path / "out", method="damped", steps=WINDOW, grams=grams)
    partial = gram(store, exclude=["lm_head"], keep=False)
    with pytest.raises(InputError, match=r"the Gram matrices lack tensor `lm_head.weight` of"):
        extrapolate(store, 36, tmp_path / "out", method="damped", steps=WINDOW, grams=partial)


def test_later_checkpoints_do_not_matter(root, store, tmp_path):
    """The window alone is looked at: what comes after it in the store changes nothing."""
    for step in SEEN:
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", load_weights(root / f"float32/checkpoint-{step}"))
    extrapolate(open_source(tmp_path / "run"), 36, tmp_path / "short", method="damped")
    extrapolate(store, 36, tmp_path / "long", method="damped", steps=WINDOW)
    assert load_bytes(tmp_path / "short") == load_bytes(tmp_path / "long")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "wls:decay=2"}, InputError, "decay=2 of method wls must be between"),
        ({"method": "wls:rank=2"}, SelectionError, "method wls has no parameter 'rank'"),
        ({"method": "damped", "steps": "0:0"}, InputError, "damped needs at least 2 checkpoints, and only one"),
        (
            {"method": "relex:rank=7", "steps": WINDOW},
            InputError,
            "relex needs at least 8 checkpoints, and only 7",
        ),
        ({"method": "damped", "from_step": 4}, InputError, "--from and --to belong to .* not to damped"),
    ],
)
def test_methods_and_parameters_that_make_no_sense_are_refused(store, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        extrapolate(store, 36, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.5, 0.6], "method mine returned coefficients that sum to 1.1; they must sum to 1"),
        ([np.nan, 1.0], "method mine did not return 2 finite coefficients"),
        ([1.0], "method mine did not return 2 finite coefficients"),
    ],
)
def test_a_method_of_another_package_that_is_not_affine_is_refused(returned, message):
    entry = MethodEntry("mine", lambda *_, **__: np.array(returned), "of another package")
    with pytest.raises(InputError, match=message):
        coefficients_of(MethodSpec(entry), (0, 1), (0, 10), 20)


def test_a_tied_name_has_the_coefficients_of_its_tensor_and_an_empty_one_those_of_rest():
    move = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [2.0, 3.0, 2.0]])
    matrices = {"w": move @ move.T, "u": np.outer(move[:, 2], move[:, 2])}
    grams = GramMatrices((0, 1, 2), matrices, {"w": 3, "u": 1}, {"w": 0.0, "u": 0.0}, {})
    found = coefficients_of(parse_method("relex"), (0, 1, 2), (0, 1, 2), 5, grams, {"head": "w"})
    assert found.of("empty").tolist() == [0.0, 0.0, 1.0]
    assert found.of("head").tolist() == found.of("w").tolist() != found.of("u").tolist()
