"""What a user can get wrong, or a disk: one sentence on stderr, exit status 2, and nothing half-made."""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ckptlin_cli.options import command as make_command

import ckptlin.extrapolate
from ckptlin.errors import NotAStoreError
from ckptlin.ingest import ingest
from ckptlin.store.lock import writer_lock
from ckptlin.store.store import TrajectoryStore, block_key
from tests.command_line import call, refusal
from tests.runs import file_contents, save_checkpoint, weights_at

MODEL = {
    "model.embed_tokens.weight": ((12, 4), ml_dtypes.bfloat16),
    "model.norm.weight": ((4,), ml_dtypes.bfloat16),
}
STEPS = (0, 100, 200)


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bad-input")
    for step in STEPS:
        save_checkpoint(root / "run" / f"checkpoint-{step}", weights_at(step, MODEL))
    ingest(root / "run", root / "store")
    return root


@pytest.fixture
def here(_prepared, tmp_path, monkeypatch) -> Path:
    """The current directory, with a run and its store."""
    shutil.copytree(_prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["ingest", "fit", "extrapolate"])
def reading(request):
    """Each command that reads a run, as a function from the run to its words."""
    return {
        "ingest": lambda *run: ("ingest", *run, "out"),
        "fit": lambda *run: ("fit", *run),
        "extrapolate": lambda *run: ("extrapolate", *run, "--step", "300", "--out", "out"),
    }[request.param]


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of some size in memory; the function may be called again for another size."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def mount(size: str, *options: str) -> Path:
        remount = ["remount"] if os.path.ismount(mounted) else []
        how = ",".join([*remount, f"size={size}", *options])
        words = ["mount", "-t", "tmpfs", "-o", how, "none", str(mounted)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"file systems cannot be mounted here: {error}")
        return mounted

    yield mount
    if os.path.ismount(mounted):
        subprocess.run(["umount", str(mounted)], check=True)


def assert_nothing_made(where: Path, *names):
    assert sorted(os.listdir(where)) == sorted(names)


# Runs


def test_a_directory_without_a_checkpoint(here, reading):
    (here / "empty").mkdir()
    message = refusal(*reading("empty"))
    assert "empty holds no checkpoint: neither a directory named checkpoint-N" in message
    assert not (here / "out").exists()


def test_a_path_that_is_not_there(here, reading):
    message = refusal(*reading("nowhere"))
    assert "nowhere does not exist; give the directory of a run, or STEP=PATH" in message
    message = refusal(*reading("0=run/checkpoint-0", "100=nowhere"))
    assert "nowhere, given as step 100, does not exist" in message


def test_a_file_where_a_directory_is_expected(here, reading):
    (here / "notes.txt").write_text("not a model")
    assert "notes.txt is not a safetensors file; give the directory of a run" in refusal(*reading("notes.txt"))
    assert "notes.txt is not a safetensors file" in refusal(*reading("0=notes.txt", "100=run/checkpoint-100"))


@pytest.mark.parametrize("form", ["run", "store"])
def test_one_checkpoint_alone(here, form):
    source = "run/checkpoint-100"
    if form == "store":
        call("ingest", source, "one")
        source = "one"
    assert refusal("fit", source) == f"a fit needs at least 2 checkpoints, and {source} has only step 100"
    message = refusal("extrapolate", source, "--step", "300", "--out", "out")
    assert message == "method ols needs at least 2 checkpoints, and only one was selected"


def changed(here, step, change):
    weights = weights_at(step, MODEL)
    change(weights)
    save_checkpoint(here / f"run/checkpoint-{step}", weights)


def test_a_shape_that_differs_between_steps(here, reading):
    changed(here, 200, lambda w: w.update({"model.norm.weight": np.zeros(5, ml_dtypes.bfloat16)}))
    assert refusal(*reading("run")) == (
        "tensor `model.norm.weight` in checkpoint step 200 (run/checkpoint-200) has shape (5,), but step 0 "
        "(run/checkpoint-0) has (4,); ingest runs of different models into different stores"
    )


def test_a_dtype_that_differs_between_steps(here, reading):
    changed(here, 100, lambda w: w.update({"model.norm.weight": np.zeros(4, np.float32)}))
    assert refusal(*reading("run")) == (
        "tensor `model.norm.weight` in checkpoint step 100 (run/checkpoint-100) has dtype float32, but step 0 "
        "(run/checkpoint-0) has bfloat16; save all checkpoints of a run in one dtype"
    )


def test_a_tensor_that_is_missing_or_new_at_a_step(here, reading):
    changed(here, 200, lambda w: w.pop("model.norm.weight"))
    message = refusal(*reading("run"))
    assert "step 200 (run/checkpoint-200) lacks 1 tensor that step 0" in message
    assert "`model.norm.weight`" in message
    changed(here, 200, lambda w: w.update(new=np.zeros(1, np.float32)))
    assert "step 0 (run/checkpoint-0) lacks 1 tensor that step 200" in refusal(*reading("run"))


def test_the_same_step_twice(here, reading):
    assert "step 100 is there twice" in refusal(*reading("100=run/checkpoint-100", "100=run/checkpoint-200"))


def test_an_index_that_points_outside_its_directory(here, reading):
    directory = here / "run/checkpoint-100"
    (directory / "model.safetensors").rename(here / "elsewhere.safetensors")
    weight_map = dict.fromkeys(MODEL, "../../elsewhere.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(*reading("run")) == (
        "run/checkpoint-100/model.safetensors.index.json names the file '../../elsewhere.safetensors', which "
        "points outside its directory, and is refused; shards must lie beside their index"
    )


def test_a_configuration_that_is_no_json(here, reading):
    (here / "run/checkpoint-200/config.json").write_text("{")
    message = refusal(*reading("run"))
    assert message.startswith("run/checkpoint-200/config.json is not valid JSON")


@pytest.mark.parametrize("form", ["run", "store"])
@pytest.mark.parametrize("command", ["fit", "extrapolate"])
def test_a_weight_that_is_no_number(here, form, command):
    changed(here, 100, lambda w: w["model.embed_tokens.weight"].__setitem__((slice(2), 1), np.nan))
    source = "run"
    if form == "store":
        call("ingest", "run", "with-nan")
        source = "with-nan"
    words, way_out = {
        "fit": (("fit", source), "the tensor with --exclude"),
        "extrapolate": (
            ("extrapolate", source, "--step", "300", "--out", "out"),
            "let the tensor keep its last value with --keep",
        ),
    }[command]
    assert refusal(*words) == (
        f"tensor `model.embed_tokens.weight` of {source} has 2 NaN weights at step 100; leave the step out "
        f"with --steps, or {way_out}"
    )
    assert not (here / "out").exists()
    option = ("--exclude", "embed") if command == "fit" else ("--keep", "embed")
    call(*words, *option)  # the way out is one
    call(*words, "--steps", "0,200", *(("--overwrite",) if command == "extrapolate" else ()))


# Stores


@pytest.fixture(params=["info", "verify", "export"])
def of_store(request):
    """Each command that takes a store alone."""
    return lambda store: (
        request.param,
        store,
        *(("--step", "100", "--out", "out") * (request.param == "export")),
    )


def test_a_path_that_is_no_store(here, of_store):
    (here / "file").touch()
    for name, what in (
        ("nowhere", "does not exist"),
        ("file", "is a file, not a trajectory store"),
        ("run", "is a directory, but not a trajectory store"),
    ):
        assert refusal(*of_store(name)) == f"{name} {what}; make a store with `ckptlin ingest RUN STORE`"


def test_a_path_that_is_neither_store_nor_run(here):
    (here / "empty").mkdir()
    for words in (("fit", "empty"), ("extrapolate", "empty", "--step", "300", "--out", "out")):
        assert refusal(*words).startswith(
            "empty is neither a trajectory store nor a run: empty holds no checkpoint"
        )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["attributes"]["ckptlin"].update(format_version=9),
            "store has store format 9, and this ckptlin",
        ),
        (lambda d: d["attributes"].pop("ckptlin"), "store has a zarr.json, but is not a trajectory store"),
        (lambda d: d["attributes"]["ckptlin"].pop("tensors"), "store has a zarr.json that lacks or garbles"),
        (
            lambda d: d["attributes"]["ckptlin"].update(format_version="x", steps=1, checkpoints=7),
            "lacks or garbles",
        ),
        (lambda d: d["attributes"]["ckptlin"]["tensors"][0].update(dtype="float12"), "lacks or garbles"),
    ],
    ids=["newer", "another zarr group", "no tensors", "garbled", "unknown dtype"],
)
@pytest.mark.parametrize("command", ["info", "fit", "ingest"])
def test_a_store_of_a_newer_format_or_none_at_all(here, edit, message, command):
    root = here / "store/zarr.json"
    document = json.loads(root.read_text())
    edit(document)
    root.write_text(json.dumps(document))
    before = file_contents(here)
    words = ("ingest", "run", "store") if command == "ingest" else (command, "store")
    assert message in refusal(*words)
    assert file_contents(here) == before


def test_a_store_whose_root_is_cut_short(here, of_store):
    root = here / "store/zarr.json"
    root.write_bytes(root.read_bytes()[:-10])
    assert "store/zarr.json is not valid JSON" in refusal(*of_store("store"))


@pytest.mark.parametrize("damage", ["flip", "missing"])
@pytest.mark.parametrize("command", ["fit", "extrapolate", "export", "verify"])
def test_a_corrupted_chunk(here, damage, command):
    store = TrajectoryStore("store")
    path = Path("store") / block_key(store.blocks("model.norm.weight")[0], 0)
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    words = {
        "fit": ("fit", "store"),
        "extrapolate": ("extrapolate", "store", "--step", "300", "--out", "out"),
        "export": ("export", "store", "--step", "100", "--out", "out"),
        "verify": ("verify", "store"),
    }[command]
    message = refusal(*words)
    assert message.startswith("the chunk of tensor `model.norm.weight` at steps 0 to 200 ")
    assert ("is missing" if damage == "missing" else "is corrupted: its crc32c checksum") in message
    assert str(path) in message
    assert_nothing_made(here, "run", "store")


def test_a_damaged_store_told_as_json(here):
    store = TrajectoryStore("store")
    (Path("store") / block_key(store.blocks("model.norm.weight")[0], 0)).unlink()
    program = f"{sys.prefix}/bin/ckptlin"
    result = subprocess.run([program, "verify", "store", "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    told = json.loads(result.stdout)
    assert told["ok"] is False
    assert result.stderr == "".join(f"ckptlin verify: {problem}\n" for problem in told["problems"])


def test_a_store_that_another_process_writes_to(here):
    save_checkpoint(here / "run/checkpoint-300", weights_at(300, MODEL))
    with writer_lock(here / "store", "store"):
        for words in (("fit", "store"), ("ingest", "run", "store")):
            assert re.match("another process is writing to .*store; wait until", refusal(*words))


def test_a_store_beside_something_else(here):
    assert refusal("fit", "store", "run") == "store is a store, which holds a run already; give it alone"
    assert refusal("fit", "store", "--base", "run/checkpoint-0").startswith(
        "--base goes with a run, and store is a"
    )


# Options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "olz"), "there is no method 'olz'; choose one of anchored, bema, "),
        (("--steps", "0-200"), "--steps '0-200' is no window; write FIRST:LAST, FIRST:LAST:STRIDE or a list"),
        (("--steps", "0:200:0"), "--steps '0:200:0' is no window"),
        (("--steps", ""), "--steps '' is no window"),
        (("--steps", "0,50"), "step 50 of --steps 0,50 does not exist among 3 steps, 0 to 200"),
        (("--steps", "300:"), "--steps 300: selects nothing among 3 steps, 0 to 200"),
        (("--memory", "much"), "Invalid value for '--memory': 'much' is not a size; write for example 512MB"),
        (("--memory", "-1"), "'-1' is not a size"),
        (("--workers", "0"), "Invalid value for '--workers'"),
        (("--dtype", "int8"), "Invalid value for '--dtype'"),
        (("--step", "soon"), "Invalid value for '--step': 'soon' is not a valid integer"),
        (("--step", "9" * 30), f"--step {'9' * 30} is no step"),
        (("--min-r2", "1.5"), "--min-r2 must lie between 0 and 1, not 1.5"),
        (("--min-r2", "nan"), "--min-r2 must lie between 0 and 1, not nan"),
        (
            ("--keep", "embet"),
            "--keep 'embet' matches none of the 2 tensors, such as 'model.embed_tokens.weight'",
        ),
        (("--keep", ""), "--keep was given an empty pattern, which would match everything"),
        (("--from", "0"), "--from and --to belong to the method two-point, not to auto; use --steps"),
        (("--max-shard-size", "0"), "the largest size of a shard must be positive, not 0 bytes"),
        (("--out", ""), "Invalid value for '--out': it must not be empty"),
        (("--outt", "x"), "No such option"),
    ],
)
def test_options_of_extrapolate_that_make_no_sense(here, words, message):
    assert message in refusal("extrapolate", "store", "--step", "300", "--out", "out", *words)
    assert_nothing_made(here, "run", "store")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "x"), "--steps 'x' is no window"),
        (
            ("--steps", "100:100"),
            "a fit needs at least 2 checkpoints, and store has only one in --steps 100:100",
        ),
        (("--include", "x"), "--include 'x' matches none of the 2 tensors"),
        (("--exclude", ""), "--exclude was given an empty pattern"),
        (("--include", "norm", "--exclude", "norm"), "no tensor of store is left to fit"),
        (("--maps", "r3"), "--maps 'r3' is not known"),
        (("--name", ""), "--name must not be empty"),
        (("--csv", "no/where.csv"), "--csv no/where.csv lies in no directory that exists; make no first"),
        (("--csv", "run"), "Invalid value for '--csv': File 'run' is a directory"),
        (("--by", "colour"), "Invalid value for '--by'"),
    ],
)
def test_options_of_fit_that_make_no_sense(here, words, message):
    before = file_contents(here)
    assert message in refusal("fit", "store", *words)
    assert file_contents(here) == before


def test_maps_of_a_run_have_no_place(here):
    assert refusal("fit", "run", "--maps", "r2").startswith(
        "maps are kept in a store, and run is a run; ingest it"
    )


def test_a_step_that_is_not_in_the_store(here):
    message = refusal("export", "store", "--step", "150", "--out", "out")
    assert message == "step 150 is not in store, which holds 3 steps, 0 to 200"


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "run", "new"),
        ("fit", "store"),
        ("fit", "run"),
        ("extrapolate", "store", "--step", "300", "--out", "out"),
        ("extrapolate", "run", "--step", "300", "--min-r2", "0.5", "--out", "out"),
        ("export", "store", "--step", "100", "--out", "out"),
        ("verify", "store"),
    ],
    ids=" ".join,
)
def test_a_budget_too_small_names_one_that_does(here, words):
    message = refusal(*words, "--memory", "1MB")
    needed = re.fullmatch(r".* needs at least .* of memory with one worker, more than the 976.6 KiB allowed; "
                          r"give --memory ([0-9]+MB) or more", message)  # fmt: skip
    assert needed, message
    assert_nothing_made(here, "run", "store")
    call(*words, "--memory", needed[1])


def test_a_command_that_does_not_exist(here):
    result = subprocess.run([f"{sys.prefix}/bin/ckptlin", "fitt"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ckptlin: No such command 'fitt'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["ingest", "fit", "extrapolate", "export", "info", "verify"])
def test_nothing_given_at_all(here, command):
    message = refusal(command)
    assert message.startswith("Missing argument")
    assert message.endswith(f"(see `ckptlin {command} --help`)")


def test_debug_shows_where_an_error_comes_from(here):
    from ckptlin_cli.main import cli
    from click.testing import CliRunner

    result = CliRunner().invoke(cli, ["info", "nowhere", "--debug"])
    assert isinstance(result.exception, NotAStoreError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (PermissionError(13, "Permission denied", "some/file"), "Permission denied: some/file"),
        (OSError("an oddity"), "an oddity"),
    ],
    ids=str,
)
def test_whatever_the_system_says_is_one_sentence(error, message):
    from click.testing import CliRunner

    def fails():
        raise error

    result = CliRunner().invoke(make_command("x", examples=[])(fails), [])
    assert result.exit_code == 2
    assert result.stderr == f"ckptlin x: {message}\n"


# Outputs


@pytest.mark.parametrize("command", ["extrapolate", "export"])
def test_an_output_that_exists(here, command):
    words = (command, "store", "--step", "100", "--out", "out")
    call(*words)
    before = file_contents(here)
    assert refusal(*words) == "out is there already; give another directory, or --overwrite"
    (here / "out/config.json").write_text("{}")
    call(*words, "--overwrite")
    after = file_contents(here)
    assert {name: data for name, data in after.items() if "ckptlin.json" not in name} == {
        name: data for name, data in before.items() if "ckptlin.json" not in name
    }


@pytest.mark.parametrize("command", ["extrapolate", "export"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file is there already and is not a directory; give another name"),
        ("file/out", "file/out cannot be made, because {here}/file is not a directory; give another name"),
        (
            "file/in/out",
            "file/in/out cannot be made, because {here}/file/in is not a directory; give another name",
        ),
        ("run", "run is not overwritten, because it holds no model but "),
        ("store", "store is not overwritten, because it holds no model but "),
        ("notes", "notes is not overwritten, because it holds no model but todo; give another directory"),
    ],
)
def test_an_output_where_none_can_be(here, command, out, message):
    (here / "file").touch()
    (here / "notes").mkdir()
    (here / "notes/todo").touch()
    before = file_contents(here)
    assert message.format(here=here) in refusal(command, "store", "--step", "100", "--out", out, "--overwrite")
    assert file_contents(here) == before


@pytest.mark.parametrize("store", ["file", "run", "file/store"])
def test_a_store_where_none_can_be(here, store):
    (here / "file").touch()
    before = file_contents(here)
    refusal("ingest", "run", store)
    assert file_contents(here) == before


@pytest.mark.parametrize("command", ["ingest", "extrapolate", "export"])
def test_a_disk_that_may_not_be_written_to(here, small_disk, command):
    small_disk("1m")
    small_disk("1m", "ro")
    words = {
        "ingest": ("ingest", "run", "disk/out"),
        "extrapolate": ("extrapolate", "store", "--step", "300", "--out", "disk/out"),
        "export": ("export", "store", "--step", "100", "--out", "disk/out"),
    }[command]
    message = refusal(*words)
    assert message.startswith("Read-only file system: ")
    if command != "ingest":
        assert message.endswith("disk/out")


@pytest.fixture
def large(here):
    """A run and a store of a model that compresses badly."""
    rng = np.random.default_rng(0)
    for step in STEPS:
        save_checkpoint(
            here / "large" / f"checkpoint-{step}", {"w": rng.normal(size=200_000).astype(np.float32)}
        )
    ingest(here / "large", here / "large.store")
    return here


def test_a_disk_too_small_is_told_before_the_work(large, small_disk):
    small_disk("64k")
    for words in (
        ("extrapolate", "large.store", "--step", "300", "--out", "disk/out"),
        ("export", "large.store", "--step", "100", "--out", "disk/out"),
        ("ingest", "large", "disk/store"),
    ):
        assert "but its disk has " in refusal(*words)
        assert_nothing_made(large / "disk")


@pytest.mark.parametrize("command", ["extrapolate", "export"])
@pytest.mark.parametrize("allocates", [True, False])
def test_a_disk_that_fills_up_leaves_no_half_made_checkpoint(
    large, small_disk, monkeypatch, command, allocates
):
    disk = small_disk("128k")
    step = "300" if command == "extrapolate" else "100"
    words = (command, "large.store", "--step", step, "--out", "disk/out")
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 40))
    if not allocates:  # as on a file system that promises space which it has not
        monkeypatch.setattr(os, "posix_fallocate", lambda fd, offset, num_bytes: os.ftruncate(fd, num_bytes))
    message = refusal(*words)
    assert message.startswith("the disk is full: disk/out takes ")
    assert "free some space, or write to another disk" in message
    assert_nothing_made(disk)
    monkeypatch.undo()
    os.chdir(large)
    small_disk("4m")
    call(*words)
    assert_nothing_made(disk, "out")


def test_a_disk_that_fills_up_leaves_no_half_made_store_and_the_ingest_can_go_on(large, small_disk):
    disk = small_disk("200k")
    message = refusal("ingest", "large", "disk/store")
    assert message.startswith("the disk is full: ")
    assert "free some space" in message
    assert not (disk / "store").exists()
    small_disk("8m")
    call("ingest", "large", "disk/store")
    call("verify", "disk/store")


def test_a_disk_that_fills_up_during_a_fit_leaves_the_store_as_it_was(large, small_disk):
    disk = small_disk("8m")
    shutil.copytree(large / "large.store", disk / "store")
    used = shutil.disk_usage(disk).used
    small_disk(f"{used // 1024 + 60}k")
    before = {name: data for name, data in file_contents(disk).items() if "/." not in name}
    assert refusal("fit", "disk/store", "--maps", "r2:float64,slope:float64").startswith("the disk is full: ")
    after = file_contents(disk)
    assert {name: after[name] for name in before} == before
    call("verify", "disk/store")


@pytest.mark.parametrize("call_number", [1, 2])
def test_a_disk_that_fills_up_where_no_disk_can_be_mounted(here, monkeypatch, call_number):
    """The error as the system gives it, at the header and at the first weights of a file."""
    write, calls = os.pwrite, itertools.count(1)

    def pwrite(fd, data, offset):
        if next(calls) >= call_number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for words in (("extrapolate", "store", "--step", "300"), ("export", "store", "--step", "100")):
        assert refusal(*words, "--out", "out").startswith("the disk is full: out takes ")
        assert_nothing_made(here, "run", "store")


def test_a_limit_on_the_size_of_files(large):
    """As a quota or a file system may set it: not a full disk, and yet no place."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    program = f"{sys.prefix}/bin/ckptlin"
    words = ["extrapolate", "large.store", "--step", "300", "--out", "out"]
    result = subprocess.run([program, *words], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "ckptlin extrapolate: File too large: out/model.safetensors\n"
    assert_nothing_made(large, "run", "store", "large", "large.store")


@pytest.mark.parametrize("moment", ["write", "add_file", "commit"])
def test_an_interrupt_leaves_nothing_half_made(here, monkeypatch, moment):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    from ckptlin_cli.main import cli
    from click.testing import CliRunner

    monkeypatch.setattr(ckptlin.extrapolate.CheckpointWriter, moment, interrupt)
    result = CliRunner().invoke(cli, ["extrapolate", "store", "--step", "300", "--out", "out"])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "Aborted!" in result.stderr
    assert_nothing_made(here, "run", "store")
