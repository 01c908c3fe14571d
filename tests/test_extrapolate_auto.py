"""The method that is chosen for the user, what to expect of a prediction, and intervals beside it."""

import json
import shutil

import numpy as np
import pytest
import torch

from ckptlin.backtest import choose
from ckptlin.dtypes import from_numpy, from_zarr
from ckptlin.errors import DiskFullError, InputError
from ckptlin.expectation import expect
from ckptlin.extrapolate import extrapolate, plan_extrapolation
from ckptlin.gram import gram, read_gram
from ckptlin.ingest import ingest
from ckptlin.intervals import prediction_intervals
from ckptlin.methods import parse_method
from ckptlin.progress import NO_PROGRESS
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.command_line import call, call_json, refusal
from tests.extrapolation import as_rounded, load_bytes
from tests.grams import grams_of
from tests.runs import save_checkpoint
from tests.saved_training import save_trained_run
from tests.tiny_models import load_weights

WINDOW = "0:24"
SEEN = tuple(range(0, 25, 4))
EVERY = tuple(range(0, 49, 4))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto")
    save_trained_run(path, (torch.float32, torch.bfloat16))
    for name in ("float32", "bfloat16"):
        ingest(path / name, path / f"{name}.store")
        gram(TrajectoryStore(path / f"{name}.store"))
    return path


@pytest.fixture
def store(root):
    return TrajectoryStore(root / "float32.store")


def window_grams(store, steps=SEEN):
    grams = read_gram(store)
    return grams.window([grams.steps.index(step) for step in steps])


class Notes(type(NO_PROGRESS)):
    def __init__(self):
        self.noted, self.phases = [], []

    def note(self, message):
        self.noted.append(message)

    def phase(self, title, num_bytes):
        self.phases.append(title)
        return super().phase(title, num_bytes)


# auto


def test_auto_is_the_method_that_the_backtest_of_the_window_chooses(store, tmp_path):
    verdict = choose(window_grams(store), 36)
    result = extrapolate(store, 36, tmp_path / "auto", steps=WINDOW)
    extrapolate(store, 36, tmp_path / "named", method=str(verdict.method), steps=WINDOW, keep=())
    assert load_bytes(tmp_path / "auto") == load_bytes(tmp_path / "named")
    record = json.loads((tmp_path / "auto/ckptlin.json").read_text())
    assert record == result.record
    assert (record["method"], record["auto"], record["reason"]) == (str(verdict.method), True, verdict.reason)
    assert record["expected"]["skill"] == pytest.approx(verdict.expected.mean)
    assert record["expected"]["num_origins"] == verdict.expected.num_origins == 4
    card = (tmp_path / "auto/README.md").read_text()
    assert f"The method was chosen by `auto`: {verdict.reason}.\n" in card
    named = json.loads((tmp_path / "named/ckptlin.json").read_text())
    assert (named["auto"], named["reason"]) == (False, None)
    assert named["expected"] == record["expected"]


def test_a_run_without_a_store_gives_the_same(root, store, tmp_path):
    notes = Notes()
    extrapolate(open_source(root / "float32"), 36, tmp_path / "run", steps=WINDOW, progress=notes)
    extrapolate(store, 36, tmp_path / "store", steps=WINDOW)
    assert load_bytes(tmp_path / "run") == load_bytes(tmp_path / "store")
    assert notes.phases == ["gram", "extrapolate"]
    assert notes.noted == []


@pytest.mark.parametrize(
    ("target", "steps", "reason"),
    [
        (36, "0,24", "through 2 steps, 0 to 24, there is one line"),
        (10, WINDOW, "step 10 is not after the last that was observed, 24"),
        (24, WINDOW, "step 24 is not after the last that was observed, 24"),
        (-5, WINDOW, "step -5 is not after the last that was observed, 24"),
    ],
)
def test_where_no_past_could_tell_auto_is_the_line_and_multiplies_nothing(
    root, tmp_path, target, steps, reason
):
    notes = Notes()
    source = open_source(root / "float32")
    result = extrapolate(source, target, tmp_path / "auto", steps=steps, progress=notes)
    extrapolate(source, target, tmp_path / "ols", method="ols", steps=steps)
    assert load_bytes(tmp_path / "auto") == load_bytes(tmp_path / "ols")
    assert (result.record["method"], result.record["reason"]) == ("ols", reason)
    assert result.record["expected"] is None
    assert notes.phases == ["extrapolate"]


def test_a_disk_without_room_is_found_before_the_weights_are_multiplied(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    monkeypatch.setattr("ckptlin.extrapolate.gram", lambda *_, **__: pytest.fail("a Gram pass was made"))
    with pytest.raises(DiskFullError, match="its disk has 10 bytes free"):
        extrapolate(open_source(root / "float32"), 60, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_three_checkpoints_hold_no_past_and_say_so(store, tmp_path):
    result = extrapolate(store, 36, tmp_path / "out", steps="0,12,24")
    assert result.record["method"].startswith("kriging:")
    assert "no past to judge by" in result.record["reason"]
    assert result.record["expected"]["skill"] is None
    assert "skill to expect" not in (tmp_path / "out/README.md").read_text()


def test_one_checkpoint_is_too_few(store, tmp_path):
    with pytest.raises(InputError, match="method ols needs at least 2 checkpoints, and only one was selected"):
        extrapolate(store, 36, tmp_path / "out", steps="0:0")


def test_a_tensor_that_is_kept_may_hold_nan_and_is_not_multiplied(root, tmp_path):
    for step in SEEN:
        weights = load_weights(root / f"float32/checkpoint-{step}")
        weights["model.norm.weight"][0] = np.nan
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights)
    source = open_source(tmp_path / "run")
    result = extrapolate(source, 36, tmp_path / "out", keep=["norm"])
    assert result.record["method"].startswith("damped:")
    assert np.isnan(load_weights(tmp_path / "out")["model.norm.weight"][0])
    result = extrapolate(source, 36, tmp_path / "all", keep=["*"])
    assert (result.record["method"], result.record["reason"]) == ("ols", "no tensor is extrapolated")


def test_auto_keeps_no_tensor_of_itself(store, tmp_path):
    assert plan_extrapolation(store, 36, tmp_path / "out", steps=WINDOW).keep == ()


# What to expect


@pytest.mark.parametrize("method", ["ols", "two-point", "damped", "relex"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
def test_the_effect_of_rounding_is_that_on_all_parameters_of_the_past(root, method, dtype):
    """With every parameter sampled the estimate is the ratio itself, of the pairs of about that reach."""
    loaded = [load_weights(root / f"bfloat16/checkpoint-{step}") for step in SEEN]
    trajectories = {name: np.stack([weights[name] for weights in loaded]) for name in loaded[0]}
    grams, spec = grams_of(SEEN, trajectories, num_samples=10**6), parse_method(method)
    output = None if dtype is None else from_zarr(dtype)
    pairs = [(n, row) for n in range(3, len(SEEN)) for row in range(n, len(SEEN))]
    assert len(pairs) < 16  # or not all would be tried
    before = after = 0.0
    for n, row in pairs:
        for name, rows in trajectories.items():
            values = rows.reshape(len(SEEN), -1).astype(np.float64)
            a = spec.coefficients(SEEN[:n], SEEN[row], grams.matrices[name][:n, :n], grams.total()[:n, :n])
            predicted = values[n - 1] + a @ (values[:n] - values[n - 1])
            rounded = as_rounded(predicted, output or from_numpy(rows.dtype))
            before += ((predicted - values[row]) ** 2).sum()
            after += ((rounded - values[row]) ** 2).sum()
    found = expect(grams, spec, 36, dtype=output)
    # On the grid of the checkpoints there are ties, which the last bit of a sum decides.
    assert found.rounding_ratio == pytest.approx(after / before, rel=1e-3)
    assert found.skill_after_rounding == pytest.approx(1 - (1 - found.skill) * found.rounding_ratio)


@pytest.mark.parametrize("method", ["ols", "two-point", "damped", "relex", "auto"])
def test_what_was_expected_is_what_comes(root, tmp_path, method):
    """Beside the checkpoint that was really trained, before and after rounding to bfloat16."""
    source, target = TrajectoryStore(root / "bfloat16.store"), 36
    trained, last = (load_weights(root / f"bfloat16/checkpoint-{step}") for step in (target, 24))

    def error(weights):
        return sum(
            ((values.astype(np.float64) - trained[name].astype(np.float64)) ** 2).sum()
            for name, values in weights.items()
        )

    errors = {}
    for dtype in ("float32", None):
        out = tmp_path / str(dtype)
        record = extrapolate(source, target, out, method=method, steps=WINDOW, keep=(), dtype=dtype).record
        errors[dtype] = error(load_weights(out))
    expected, stay = record["expected"], error(last)
    assert 1 - errors["float32"] / stay == pytest.approx(expected["skill"], abs=0.15)
    assert 1 - errors[None] / stay == pytest.approx(expected["skill_after_rounding"], abs=0.15)
    assert errors[None] / errors["float32"] == pytest.approx(expected["rounding_ratio"], rel=0.1)
    card = (tmp_path / "None/README.md").read_text()
    assert f"1: the trained one) | {expected['skill']:.2f}" in card
    assert f"| the same after rounding to the dtype | {expected['skill_after_rounding']:.2f} (" in card


@pytest.fixture
def wavering(tmp_path):
    """A run without a direction: noise about one point, so that lines lead away from it."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 20))
    for step in range(0, 80, 10):
        weights = {"w": (first + 0.1 * rng.normal(size=first.shape)).astype(np.float32)}
        save_checkpoint(tmp_path / f"run/checkpoint-{step}", weights)
    gram(ingest(tmp_path / "run", tmp_path / "store").store)
    return TrajectoryStore(tmp_path / "store")


def test_beyond_reach_there_is_a_warning(wavering, tmp_path):
    notes = Notes()
    result = extrapolate(wavering, 120, tmp_path / "out", method="two-point", progress=notes)
    (warning,) = notes.noted
    assert warning.startswith("step 120 is beyond reach: predictions from 5 origins of this run")
    assert "by two-point" in warning
    assert result.warnings == (warning,)
    assert result.record["expected"]["is_beyond_reach"]
    assert result.record["expected"]["skill"] < 0
    assert f"**Warning:** {warning}.\n" in (tmp_path / "out/README.md").read_text()


def test_further_than_any_prediction_of_the_past_there_is_another(store, tmp_path):
    result = extrapolate(store, 200, tmp_path / "out", method="damped", steps=WINDOW)
    assert any("no prediction of this run's past reaches as far as step 200" in w for w in result.warnings)
    assert not result.record["expected"]["is_tested"]
    assert extrapolate(store, 56, tmp_path / "near", method="damped").warnings == ()


def test_of_rank1_matrix_nothing_is_said(store, tmp_path):
    result = extrapolate(store, 36, tmp_path / "out", method="rank1-matrix", steps=WINDOW)
    assert result.record["expected"] is None


# Intervals


@pytest.mark.parametrize("method", ["ols", "damped", "rank1-matrix"])
@pytest.mark.parametrize("source_kind", ["run", "store"])
def test_intervals_are_written_beside_the_checkpoint(root, store, tmp_path, method, source_kind):
    source = store if source_kind == "store" else open_source(root / "float32")
    path = tmp_path / "widths.json"
    options = {"method": method, "steps": WINDOW, "keep": ["norm"]}
    result = extrapolate(source, 36, tmp_path / "out", intervals=path, **options)
    found = json.loads(path.read_text())
    direct = prediction_intervals(window_grams(store), 36).to_dict()
    widths = {tensor["name"]: tensor["half_width_rms"] for tensor in found["tensors"]}
    assert widths == pytest.approx(
        {t["name"]: t["half_width_rms"] for t in direct["tensors"] if "norm" not in t["name"]}
    )
    assert found["model"]["half_width_rms"] == result.record["interval"]["half_width_rms"]
    assert result.record["interval"]["level"] == 0.95
    out, last = load_weights(tmp_path / "out"), load_weights(root / "float32/checkpoint-24")
    for tensor in found["tensors"]:
        name = tensor["name"]
        if method == "rank1-matrix":  # compared with the line's move: it has no coefficients
            continue
        moved = np.sqrt(((out[name].astype(np.float64) - last[name]) ** 2).mean())
        assert tensor["move_rms"] == pytest.approx(moved, rel=1e-4), name
        assert tensor["relative"] == pytest.approx(tensor["half_width_rms"] / tensor["move_rms"])
    assert "half width of 95% prediction intervals" in (tmp_path / "out/README.md").read_text()


def test_intervals_that_cannot_be_written_are_refused_before_anything_is(store, tmp_path):
    for path, message in (("x.txt", "must end in"), ("none/x.csv", "in no directory that exists")):
        with pytest.raises(InputError, match=message):
            extrapolate(store, 36, tmp_path / "out", intervals=tmp_path / path)
    with pytest.raises(InputError, match="--intervals needs at least 3 checkpoints"):
        extrapolate(store, 36, tmp_path / "out", steps="0,4", intervals=tmp_path / "x.csv")
    assert not list(tmp_path.iterdir())


# The command


def test_the_command_says_what_was_chosen_and_what_to_expect(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("extrapolate", root / "bfloat16.store", "--step", "36", "--steps", WINDOW)
    shown = call(*words, "--out", "a", "--intervals", "w.csv").stdout
    data = call_json(*words, "--out", "b")
    assert f"chosen           {data['reason']}\n" in shown
    expected = data["expected"]
    skills = f"{expected['skill']:.2f}, {expected['skill_after_rounding']:.2f} after rounding"
    assert f"skill to expect  {skills} (0: the last checkpoint, 1: right)\n" in shown
    assert (tmp_path / "w.csv").read_text().startswith("name,num_params,")
    assert "chosen" not in call(*words, "--out", "c", "--method", "ols").stdout
    dry = call_json(*words, "--out", "d", "--dry-run")
    assert (dry["method"], dry["auto"], dry["expected"]) == (data["method"], True, expected)


def test_a_dry_run_without_matrices_says_that_they_come_first(root, tmp_path):
    words = ("extrapolate", root / "float32", "--step", "60", "--out", tmp_path / "out", "--dry-run")
    shown = call(*words).stdout
    assert "auto over steps 0, 4" in shown
    assert "follow from Gram matrices, which have to be computed first" in shown
    assert "of them for Gram matrices" in shown
    assert call_json(*words)["coefficients"] is None
    assert "must end in .json or .csv" in refusal(*words[:-1], "--intervals", "w.txt")
