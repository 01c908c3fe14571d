"""What commands print, where they print it, and that it is one and the same content in every form."""

import csv
import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

from ckptlin.methods import METHODS, parse_method
from tests.command_line import call, call_json, refusal
from tests.runs import file_contents
from tests.tiny_models import load_weights


def pairs_of(text):
    """Read lines of a name, two spaces or more, and a value."""
    found = [re.split(r"  +", line, maxsplit=1) for line in text.strip().split("\n")]
    assert all(len(pair) == 2 for pair in found), text
    return dict(found)


def table_of(text):
    """Read the table of `fit`: its header and its rows, split into cells."""
    lines = text.split("\n")
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    rows = []
    for line in lines[rule + 1 :]:
        if not line:
            break
        rows.append(re.split(r"  +", line.strip()))
    return re.split(r"  +", lines[rule - 1].strip()), rows


def in_words(group):
    """The cells of a group's row, from the JSON of the same fit."""

    def percent(share):
        return "-" if share is None else f"{share:.1%}"

    def number(value):
        return "-" if value is None else f"{value:.2f}"

    moved, null_moved, paper, null_paper = (group[k] for k in ("moved", "null_moved", "paper", "null_paper"))
    update = group["relative_update"]
    return [
        group["name"],
        str(group["num_params"]),
        percent(group["share_unchanged"]),
        number(moved["median"]),
        f"({number(null_moved['median'])})",
        percent(moved["above_7"]),
        f"({percent(null_moved['above_7'])})",
        percent(paper["count"] / group["num_params"]),
        number(paper["median"]),
        f"({number(null_paper['median'])})",
        percent(paper["above_7"]),
        f"({percent(null_paper['above_7'])})",
        "-" if update is None else f"{update:.1e}",
        percent(group["rounding_share"]),
    ]


def movement_in_words(group):
    """The cells of a row of `gram`, from the JSON of the same."""

    def number(value):
        return "-" if value is None else f"{value:.2f}"

    return [
        group["name"],
        str(group["num_params"]),
        f"{group['update_norm']:.3g}",
        number(group["mean_cosine"]),
        number(group["straightness"]),
        "-" if group["rank1_share"] is None else f"{group['rank1_share']:.1%}",
        number(group["r2"]),
    ]


@pytest.mark.parametrize(("by", "key"), [("kind", "kinds"), ("layer", "layers"), ("tensor", "tensors")])
@pytest.mark.parametrize("source", ["run", "run.store"])
def test_the_table_of_gram_says_what_its_json_says(here, source, by, key):
    header, rows = table_of(call("gram", source, "--by", by).stdout)
    data = call_json("gram", source, "--by", by)
    assert header[0] == by
    assert rows == [movement_in_words(group) for group in [*data[key], data["model"]]]


def test_the_csv_of_gram_has_all_levels(here):
    data = call_json("gram", "run.store", "--csv", "moves.csv")
    with open("moves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    groups = [data["model"], *data["layers"], *data["kinds"], *data["tensors"]]
    assert [row["name"] for row in rows] == [group["name"] for group in groups]
    assert [float(row["update_norm"]) for row in rows] == [group["update_norm"] for group in groups]
    assert [row["level"] for row in rows[:2]] == ["model", "layer"]


def test_gram_says_where_its_matrices_come_from(here):
    assert "from what the store keeps" in call("gram", "run.store").stdout  # the fit has kept them
    assert "not kept" in call("gram", "run").stdout
    call("ingest", "run", "new.store", "-q")
    shown = pairs_of(call("gram", "new.store", "--dry-run").stdout)
    assert shown["known already"] == "no steps"
    plan = call_json("gram", "new.store", "--dry-run")
    assert (plan["known_steps"], plan["kept"], plan["passes"]) == (0, True, 1)
    assert "not kept" in call("gram", "new.store", "--no-keep").stdout
    assert "kept in the store" in call("gram", "new.store").stdout
    assert call_json("gram", "new.store", "--dry-run")["bytes_in"] == 0
    assert call_json("info", "new.store")["gram"]["state"] == "current"
    assert pairs_of(call("info", "new.store").stdout)["Gram matrices"] == "11 steps, 0 to 1000; current"


def test_gram_of_two_steps_says_that_it_says_little(here):
    assert "every path is straight" in call("gram", "run.store", "--steps", "0,100").stdout
    assert "every path is straight" not in call("gram", "run.store").stdout


def test_a_fit_says_whether_it_keeps_the_gram_matrices(here):
    call("ingest", "run", "new.store", "-q")
    assert pairs_of(call("fit", "new.store", "--dry-run").stdout)["Gram matrices"] == "in the same pass"
    assert "Gram matrices" not in call("fit", "new.store", "--no-gram").stdout
    assert call_json("info", "new.store")["gram"] is None
    assert "Gram matrices (`ckptlin gram`)" in call("fit", "new.store").stdout
    assert "--gram keeps the matrices of all steps" in refusal("fit", "new.store", "--gram", "--steps", "0:500")
    assert "lies in no directory" in refusal("gram", "new.store", "--csv", "absent/moves.csv")


@pytest.mark.parametrize(("by", "key"), [("kind", "kinds"), ("layer", "layers"), ("tensor", "tensors")])
@pytest.mark.parametrize("source", ["run", "run.store"])
def test_the_table_of_a_fit_says_what_its_json_says(here, source, by, key):
    header, rows = table_of(call("fit", source, "--by", by).stdout)
    data = call_json("fit", source, "--by", by)
    groups = [*data[key], data["model"]]
    assert header[0] == by
    assert len(groups) > 1
    assert rows == [in_words(group) for group in groups]


def test_the_csv_of_a_fit_says_what_its_json_says(here):
    data = call_json("fit", "run.store", "--csv", "figures.csv")
    with open("figures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [("model", data["model"])]
    expected += [(level, group) for level in ("layer", "kind", "tensor") for group in data[f"{level}s"]]
    assert [(row["level"], row["name"]) for row in rows] == [
        (level, group["name"]) for level, group in expected
    ]
    for row, (_, group) in zip(rows, expected, strict=True):
        flat = {}
        for name, value in group.items():
            inner = value if isinstance(value, dict) else {None: value}
            flat |= {name if key is None else f"{name}_{key}": item for key, item in inner.items()}
        assert row.keys() - {"level"} == flat.keys()
        for name, value in flat.items():
            if value is None:
                assert row[name] == ""
            elif isinstance(value, str):
                assert row[name] == value
            else:
                assert float(row[name]) == value


def test_the_parts_of_a_fit_add_up(here):
    data = call_json("fit", "run.store")
    assert data["steps"] == list(range(0, 1001, 100))
    assert data["model"]["num_params"] == sum(t["num_params"] for t in data["tensors"]) == 104
    assert sum(k["num_params"] for k in data["kinds"]) == 104


def test_two_steps_fit_any_line_and_the_table_says_so(here):
    shown = call("fit", "run.store", "--steps", "0,100", "--name", "two").stdout
    assert "With two steps every line fits" in shown
    assert "With two steps every line fits" not in call("fit", "run.store").stdout


def test_a_fit_says_what_it_keeps(here):
    assert (
        "kept as fit 'mine', maps: r2 (float32)"
        in call("fit", "run.store", "--name", "mine", "--maps", "r2:float32").stdout
    )
    assert "kept as fit" not in call("fit", "run").stdout


def test_info_says_in_words_what_its_json_says(here):
    data, shown = call_json("info", "run.store"), pairs_of(call("info", "run.store").stdout)
    assert shown["store"] == f"run.store (commit {data['commit']}, {data['created_by']})"
    assert shown["model"] == ", ".join(data["architectures"])
    assert shown["steps"] == "11 steps, 0 to 1000: " + ", ".join(map(str, data["steps"]))
    assert shown["tensors"] == f"{data['num_tensors']}, {data['num_params']} parameters (104 bfloat16)"
    assert shown["fitted"] == f"{data['num_fitted']} parameters take part in fits"
    ratio = data["raw_bytes"] / data["stored_bytes"]
    assert f"(ratio {ratio:.2f}, {data['codec']}, {data['chunk_steps']} steps a chunk)" in shown["size"]
    assert shown["files kept"] == ", ".join(data["files"])
    (fit,) = data["fits"]
    assert shown["fit default"] == "11 steps, 0 to 1000; r2 (float16), slope (bfloat16); current"
    assert (fit["name"], fit["state"], fit["maps"]) == (
        "default",
        "current",
        {"r2": "float16", "slope": "bfloat16"},
    )
    assert f"{data['fit_memory_bytes'] / 2**20:.1f} MiB" in shown["a fit needs"]


def test_info_of_a_store_without_a_fit_says_how_to_make_one(here):
    call("ingest", "run", "new.store")
    assert "none; run `ckptlin fit new.store`" in call("info", "new.store").stdout


def test_ingest_says_in_words_what_its_json_says(here):
    first, second = call("ingest", "run", "one.store").stdout, call_json("ingest", "run", "two.store")
    shown = pairs_of(first)
    assert shown["added"] == "11 steps, 0 to 1000"
    assert second["steps_added"] == second["steps"] == list(range(0, 1001, 100))
    assert second["steps_present"] == []
    assert shown["now holds"] == f"11 steps, 0 to 1000, {second['tensors']} tensors"
    assert f"(ratio {second['ratio']:.2f})" in shown["size"]
    again = pairs_of(call("ingest", "run", "one.store").stdout)
    assert again["added"] == "nothing: the store is up to date"
    assert again["already in"] == "11 steps, 0 to 1000"
    assert call_json("ingest", "run", "two.store")["steps_added"] == []


def test_an_archive_is_made_by_either_option_and_shown(here):
    for name, options in (("a.store", ["--archive"]), ("b.store", ["--codec", "archive"])):
        call("ingest", "run", name, *options)
        assert call_json("info", name)["codec"] == "archive"
    call("ingest", "run", "c.store", "--archive", "--codec", "archive")
    assert call_json("info", "run.store")["codec"] == "pack"
    message = refusal("ingest", "run", "d.store", "--archive", "--codec", "lz4")
    assert message == "--archive is --codec archive, and --codec lz4 is given as well; leave one out"
    assert not (here / "d.store").exists()


def test_extrapolate_says_in_words_what_its_json_and_the_record_say(here):
    options = ("--step", "1500", "--method", "two-point", "--min-r2", "0.5")
    shown = pairs_of(call("extrapolate", "run.store", *options, "--out", "one").stdout)
    data = call_json("extrapolate", "run.store", *options, "--out", "two")
    record = json.loads((here / "two/ckptlin.json").read_text())
    assert {name: data[name] for name in record if name != "tensors"} == {
        name: value for name, value in record.items() if name != "tensors"
    }
    assert data["out"] == "two"
    assert shown["wrote"] == "one"
    assert shown["method"] == f"two-point over {len(data['steps'])} checkpoints, step 1500"
    rules = list(record["tensors"].values())
    assert (
        shown["tensors"] == f"{rules.count('extrapolate')} extrapolated, {rules.count('keep')} kept, 0 copied"
    )
    lost = data["params_unchanged_by_rounding"] / data["params_extrapolated"]
    assert shown["rounding"].startswith(f"{lost:.1%} of the parameters")
    assert shown["gate"] == f"{data['params_held_by_gate']} parameters held, R² under 0.5"


def test_keep_off_keeps_nothing_and_keep_may_be_repeated(here):
    base = ("extrapolate", "run.store", "--step", "1500", "--method", "two-point")
    assert call_json(*base, "--out", "default")["keep"] == ["norm"]
    assert call_json(*base, "--out", "off", "--keep", "off")["keep"] == []
    patterns = ["embed", "*layers.1.*norm*"]
    both = call_json(*base, "--out", "both", *(word for pattern in patterns for word in ("--keep", pattern)))
    assert both["keep"] == patterns


def test_from_and_to_choose_the_two_checkpoints(here):
    call("extrapolate", "run", "--step", "300", "--method", "two-point", "--from", "100", "--to", "300",
         "--keep", "off", "--out", "out")  # fmt: skip
    original = file_contents(here / "run/checkpoint-300")
    found = file_contents(here / "out")
    assert {name: found[name] for name in original} == original


def test_size_and_dtype_of_what_is_written_may_be_chosen(here):
    call("extrapolate", "run.store", "--step", "1500", "--out", "out", "--dtype", "float32",
         "--max-shard-size", "0.2KiB")  # fmt: skip
    assert len(list((here / "out").glob("*.safetensors"))) > 1
    assert {values.dtype for values in load_weights(here / "out").values()} == {np.dtype(np.float32)}


def test_export_says_in_words_what_its_json_says(here):
    shown = pairs_of(call("export", "run.store", "--step", "300", "--out", "one").stdout)
    data = call_json("export", "run.store", "--step", "300", "--out", "two")
    size = (here / "two/model.safetensors").stat().st_size
    assert (data["out"], data["step"], data["bytes"]) == ("two", 300, size)
    assert shown["wrote"] == "one"
    assert shown["size"] == f"{size} B" if size < 1024 else f"{size / 1024:.1f} KiB"
    assert file_contents(here / "one") == file_contents(here / "run/checkpoint-300")


def test_verify_says_in_words_what_its_json_says(here):
    data, shown = call_json("verify", "run.store"), call("verify", "run.store").stdout
    assert data["ok"] is True
    assert data["problems"] == []
    assert shown.startswith(f"run.store: {data['chunks']} chunks, ")


def test_methods_lists_every_method_with_its_parameters(here):
    listed, parameters = call("methods").stdout.split("\nParameters, as NAME:KEY=VALUE,...\n")
    shown, data = pairs_of(listed), call_json("methods")
    (rank1,) = data["for_extrapolate_alone"]
    assert list(shown) == [*METHODS, "rank1-matrix"] == [m["name"] for m in (*data["methods"], rank1)]
    assert shown["rank1-matrix"] == f"{rank1['description']}; for extrapolate alone"
    for method in data["methods"]:
        entry = METHODS[method["name"]]
        assert method["description"] == entry.description
        assert method["needs_gram"] == entry.needs_gram
        assert method["is_linear"] == entry.is_linear
        assert shown[method["name"]].startswith(method["description"])
        assert ("keeps norm unless told otherwise" in shown[method["name"]]) == (method["keep"] == ["norm"])
    given = {f"{m['name']}:{p['name']}={p['default']}": p for m in data["methods"] for p in m["parameters"]}
    explained = pairs_of(parameters)
    assert explained.pop("rank1-matrix:rest=1").startswith(rank1["parameters"][0]["description"])
    assert list(explained) == list(given)
    for text, parameter in given.items():
        assert explained[text].startswith(parameter["description"])
        assert parse_method(text) == parse_method(text.partition(":")[0])


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "run", "new.store"),
        ("ingest", "run", "run.store"),
        ("fit", "run.store", "--csv", "figures.csv"),
        ("fit", "run"),
        ("extrapolate", "run.store", "--step", "1500", "--out", "out"),
        ("extrapolate", "run", "--step", "1500", "--out", "out/in/it", "--method", "two-point"),
    ],
    ids=" ".join,
)
def test_a_dry_run_writes_nothing_and_says_what_would_happen(here, words):
    def snapshot():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in here.rglob("*")
        }

    before = snapshot()
    shown = pairs_of(call(*words, "--dry-run").stdout)
    data = call_json(*words, "--dry-run")
    assert snapshot() == before
    assert shown["memory"] == f"{data['peak_memory_bytes'] / 2**20:.1f} MiB, {data['workers']} workers"
    reads = data["bytes_in"]
    assert shown["would read"].startswith(f"{reads} B" if reads < 1024 else f"{reads / 1024:.1f} KiB")
    if "run.store" not in words or words[0] != "ingest":
        assert reads > 0


def test_a_dry_run_of_an_extrapolation_shows_its_coefficients_and_warnings(here):
    words = ("extrapolate", "run.store", "--step", "2500", "--method", "two-point", "--out", "out", "--dry-run")
    result = call(*words)
    assert pairs_of(result.stdout)["coefficients"] == "-1.5000, +2.5000"
    assert "2.5 times the observed span" in result.stderr
    assert call_json(*words)["coefficients"] == [-1.5, 2.5]


@pytest.mark.parametrize("form", [(), ("--json",), ("--quiet",)], ids=str)
def test_notes_go_to_stderr_and_data_to_stdout(here, form):
    result = call("extrapolate", "run.store", "--step", "5000", "--out", "out", *form)
    assert result.stderr.startswith("note: step 5000 reaches 5.0 times the observed span (0 to 1000);")
    assert result.stderr.count("\n") == 1
    assert "observed span" not in result.stdout or json.loads(result.stdout)["warnings"]
    assert call("extrapolate", "run.store", "--step", "2000", "--out", "near").stderr == ""


@pytest.mark.parametrize("command", ["ingest", "fit", "extrapolate"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=str)
def test_checkpoints_that_are_left_out_are_named_on_stderr(here, command, dry):
    (here / "run/checkpoint-300/model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    words = {
        "ingest": ("ingest", "run", "new.store"),
        "fit": ("fit", "run"),
        "extrapolate": ("extrapolate", "run", "--step", "1500", "--out", "out"),
    }[command]
    result = call(*words, "--skip-incomplete", *dry)
    assert result.stderr.startswith("note: left out incomplete checkpoint step 300: run/checkpoint-300")
    assert result.stderr.count("\n") == 1
    assert result.stdout


PROGRAM = f"{sys.prefix}/bin/ckptlin"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=str)
def test_progress_is_drawn_on_stderr_where_that_is_a_terminal(here, quiet):
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "ingest", "run", "new.store", "--json", *quiet], stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        result = json.loads(process.stdout.read())
    os.close(leader)
    assert process.returncode == 0
    assert result["steps"] == list(range(0, 1001, 100))
    assert (b"ingest" in shown) == (not quiet)


def test_a_pipe_that_is_closed_early_is_no_error_worth_a_traceback(here):
    line = f"{PROGRAM} info run.store --json | true"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_budget_and_a_number_of_workers_are_obeyed(here):
    data = call_json("fit", "run.store", "--memory", "2GiB", "--workers", "1", "--dry-run")
    assert data["workers"] == 1
    assert data["peak_memory_bytes"] < 2 << 30
    for words in (("verify", "run.store"), ("export", "run.store", "--step", "300", "--out", "out")):
        call(*words, "--memory", "1GB", "--workers", "1")
