"""``ckptlin backtest``: its tables, its files, and the checkpoints that `extrapolate` really writes."""

import csv
import re

import numpy as np
import pytest

from ckptlin.backtest import HORIZONS, backtest
from ckptlin.gram import gram, read_gram
from ckptlin.methods import METHODS
from ckptlin.source import open_source
from ckptlin.store.store import TrajectoryStore
from tests.cli.conftest import MODEL
from tests.command_line import call, call_json, refusal
from tests.runs import file_contents, weights_at
from tests.tiny_models import load_weights


def table_after(text, first):
    """Read the rows of the table whose header begins with a word, split into cells."""
    lines = text.split("\n")
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"{first} ")) + 2
    end = next(i for i in range(begin, len(lines)) if not lines[i])
    return {cells[0]: cells[1:] for cells in (re.split(r"  +", line.strip()) for line in lines[begin:end])}


@pytest.mark.parametrize("source", ["run", "run.store"])
def test_the_table_says_what_the_json_says(here, source):
    shown, data = call("backtest", source).stdout, call_json("backtest", source)
    rows = table_after(shown, "method")
    assert list(rows) == [*METHODS, "auto", "rounding allows"]
    figures = {(r["method"], r["horizon"]): r for r in data["skill"] if r["level"] == "model"}
    for method in (*METHODS, "auto"):
        for horizon, cell in zip(HORIZONS, rows[method], strict=True):
            row = figures[method, horizon]
            expected = "< -10" if row["mean"] < -9.995 else f"{row['mean']:.2f} ± {min(row['std'], 99.99):.2f}"
            assert cell == expected
    assert rows["rounding allows"] == [f"{h['ceiling']:.2f}" for h in data["horizons"]]
    for sentence in data["verdict"]:
        assert sentence in shown.split("\n")
    assert data["source"] == source
    assert data["steps"] == list(range(0, 1001, 100))


def test_the_result_is_that_of_the_library(here):
    expected = backtest(gram(open_source("run")), ["two-point", "damped:base=ols"])
    data = call_json("backtest", "run", "--methods", "two-point,damped:base=ols")
    assert data["skill"] == expected.to_rows()
    assert data["methods"] == {
        "two-point": "two-point",
        "damped:base=ols": "damped:ridge=1,width=0.5,base=ols",
    }


def test_the_best_method_of_each_kind_is_told(here):
    shown = call("backtest", "run.store", "--by", "kind").stdout
    data = call_json("backtest", "run.store")
    rows = table_after(shown, "kind")
    assert list(rows) == list(data["tensor_kinds"])
    assert set(rows) == {"embed_tokens", "mlp.up_proj", "input_layernorm"}
    for kind, (_, *cells) in rows.items():
        for horizon, cell in zip(HORIZONS, cells, strict=True):
            means = {
                r["method"]: r["mean"]
                for r in data["skill"]
                if (r["name"], r["horizon"]) == (kind, horizon) and r["method"] != "auto"
            }
            best = max(means, key=lambda m: (means[m], m))
            assert cell == (f"{best} {means[best]:.2f}" if means[best] > 0 else "none")


def test_csv_and_figure_are_written(here):
    data = call_json("backtest", "run.store", "--csv", "skill.csv", "--figure", "skill.svg")
    with open("skill.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(data["skill"])
    for row, expected in zip(rows, data["skill"], strict=True):
        assert {name: "" if value is None else str(value) for name, value in expected.items()} == row
    assert (
        b"how well" in (here / "skill.svg").read_bytes().lower() or (here / "skill.svg").stat().st_size > 5000
    )


def test_a_window_is_judged_by_itself(here):
    data = call_json("backtest", "run.store", "--steps", "200:800")
    grams = gram(open_source("run"), steps="200:800")
    assert data["steps"] == list(range(200, 801, 100))
    expected = backtest(grams).to_rows()
    for row, other in zip(data["skill"], expected, strict=True):
        assert row["mean"] == pytest.approx(other["mean"], rel=1e-6, abs=1e-9)


def test_a_store_keeps_the_matrices_unless_told_otherwise(here):
    before = file_contents(here / "run.store")
    call("backtest", "run.store", "--no-keep")
    assert file_contents(here / "run.store") == before
    call("backtest", "run.store")
    assert read_gram(TrajectoryStore("run.store")).steps == tuple(range(0, 1001, 100))


@pytest.mark.parametrize(
    ("method", "seen", "target"), [("wls-anchored", 5, 800), ("ols", 4, 600), ("two-point", 8, 1000)]
)
def test_the_skill_is_that_of_the_checkpoint_that_is_really_written(here, method, seen, target):
    """Extrapolate from a prefix, and measure the distance to the checkpoint that was trained."""
    last = 100 * (seen - 1)
    call("extrapolate", "run.store", "--step", str(target), "--steps", f"0:{last}", "--method", method,
         "--dtype", "float32", "--out", "out")  # fmt: skip
    found, true, kept = load_weights(here / "out"), weights_at(target, MODEL), weights_at(last, MODEL)
    error = sum(((found[n].astype(np.float64) - true[n].astype(np.float64)) ** 2).sum() for n in MODEL)
    move = sum(((kept[n].astype(np.float64) - true[n].astype(np.float64)) ** 2).sum() for n in MODEL)
    scores = backtest(gram(open_source("run.store"))).scores
    pair = np.flatnonzero((scores.origins == seen) & (scores.held_out == target // 100))
    assert scores.skill(method)[pair] == pytest.approx(1 - error / move, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0:200"], "a backtest needs at least 4 checkpoints, 3 to predict from"),
        (["--methods", "olz"], "there is no method 'olz'; choose one of"),
        (["--methods", "wls:decay=2"], "decay=2 of method wls must be between 0.01 and 1"),
        (["--figure", "skill.gif"], "a figure cannot be written to skill.gif; let its name end in"),
        (["--csv", "none/skill.csv"], "--csv none/skill.csv lies in no directory that exists; make none first"),
        (["--figure", "none/skill.png"], "--figure none/skill.png lies in no directory that exists"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(here, words, message):
    assert refusal("backtest", "run.store", *words).startswith(message)
    assert not list(here.glob("skill*"))
