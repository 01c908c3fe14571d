"""A run's directory: what a kill, a full disk, another process or other settings do to it."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ckptlin.errors import CheckpointError, InputError, OutputExistsError
from ckptlin.rl.config import LogConfig, OptimizerConfig, StopConfig
from ckptlin.rl.run_directory import RunDirectory, link_model, open_run
from ckptlin.rl.state import JumpRecord, TrainState
from tests.run_directories import CONFIG, VERSIONS, go_on, jump, save, start, write_run
from tests.runs import file_contents

WRITE = "tests.run_directories:write_run"


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", CONFIG, versions=VERSIONS) as run:
        yield run


def contents(path):
    found = file_contents(path)
    found.pop(".lock", None)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What lies in the directory at each resume point, by its name, and at the end."""
    snapshots = {}

    class Watched(RunDirectory):
        def new_state(self, state, **options):
            watched = super().new_state(state, **options)

            class Snapshot:
                def __enter__(self):
                    return watched.__enter__()

                def __exit__(self, *error):
                    result = watched.__exit__(*error)
                    snapshots[state.path.name] = contents(root)
                    return result

            return Snapshot()

    root = tmp_path_factory.mktemp("undisturbed") / "run"
    with open_run(root, CONFIG, versions=VERSIONS) as run:
        watched = Watched(root, run.record)
        go_on(watched, start(watched))
    snapshots["end"] = contents(root)
    assert list(snapshots) == ["0-0", "2-0", "4-0", "4-1", "6-0", "8-0", "8-1", "end"]
    return snapshots


def check_rewound(forked, path, undisturbed):
    """Open a run that was disturbed; assert that it stands whole at a resume point, and return which."""
    outcome = forked.call("tests.run_directories:rewind_run", path)  # there nothing waits for the disk
    assert outcome.error == "", outcome.message
    if outcome.value is None:
        return "start"
    expected = undisturbed[outcome.value]
    if json.loads((path / "ckptlin-train.json").read_text())["finished"]:
        expected = undisturbed["end"]
    assert contents(path) == expected, outcome.value
    return outcome.value


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_may_be_killed_before_any_operation(tmp_path, forked, undisturbed, stride):
    path = tmp_path / "run"
    num_operations = forked.call(WRITE, path).num_operations
    assert contents(path) == undisturbed["end"]
    seen = []
    for operation in range(1, num_operations + 1, stride):
        shutil.rmtree(path, ignore_errors=True)
        assert forked.call(WRITE, path, die_at=operation).signal == signal.SIGKILL
        seen.append(check_rewound(forked, path, undisturbed))
        outcome = forked.call(WRITE, path)
        assert (operation, outcome.error, outcome.message) == (operation, "", "")
        assert contents(path) == undisturbed["end"], f"killed before operation {operation}"
    assert seen == sorted(seen, key=["start", *undisturbed].index)
    assert set(seen) >= {"start", "0-0", "2-0", "4-0", "4-1", "6-0", "8-0"}


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_disk_at_any_operation_leaves_the_last_resume_point(tmp_path, forked, undisturbed, stride):
    path = tmp_path / "run"
    num_operations = forked.call(WRITE, path).num_operations
    failed = 0
    for operation in range(1, num_operations + 1, stride):
        shutil.rmtree(path, ignore_errors=True)
        outcome = forked.call(WRITE, path, full_at=operation)
        if outcome.error:  # some clear away what need not be there
            assert outcome.error in ("DiskFullError", "OSError"), (operation, outcome)
            assert "disk is full" in outcome.message or "No space left" in outcome.message
            failed += 1
        check_rewound(forked, path, undisturbed)
        outcome = forked.call(WRITE, path)
        assert (operation, outcome.error, outcome.message) == (operation, "", "")
        assert contents(path) == undisturbed["end"], f"full at operation {operation}"
    assert failed > num_operations / stride / 2


def test_overwriting_may_be_killed_before_any_operation(tmp_path, forked, undisturbed):
    path = tmp_path / "run"
    write_run(path)
    (path / "checkpoint-0/extra.txt").write_text("of the former run")
    before = contents(path)
    template = tmp_path / "template"
    shutil.copytree(path, template)
    seen = set()
    for operation in range(1, 40, 3):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(template, path)
        assert forked.call(WRITE, path, overwrite=True, die_at=operation).signal == signal.SIGKILL
        is_former = path.exists() and contents(path) == before
        seen.add(is_former)
        if not is_former:
            check_rewound(forked, path, undisturbed)
        assert forked.call(WRITE, path, overwrite=True).error == ""
        assert contents(path) == undisturbed["end"]
        assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "template"]
    assert seen == {True, False}


def test_a_run_that_is_whole_stays_as_it_is(tmp_path, undisturbed):
    assert write_run(tmp_path / "run") == write_run(tmp_path / "run")
    assert contents(tmp_path / "run") == undisturbed["end"]


def test_jumps_are_recorded_as_readers_look_for_them(tmp_path):
    write_run(tmp_path / "run")
    record = json.loads((tmp_path / "run/ckptlin-train.json").read_text())
    (kept,), (undone,) = record["jumps"], record["jumps_undone"]
    assert (kept["from"], kept["to"], kept["step"], kept["method"]) == (4, 14, 4, "two-point")
    assert (undone["from"], undone["to"], undone["step"]) == (18, 28, 8)
    assert not (tmp_path / "run/checkpoint-28").exists()
    assert record["config"]["extra"]["m"] == 4
    assert record["versions"] == VERSIONS


def test_rewinding_before_a_jump_forgets_it(run):
    state = start(run)
    state = save(run, replace(state, step=4, virtual_step=4, leg_steps=4))
    record = JumpRecord(4, 14, 4, "two-point", (0, 4), 14)
    run.note_jump(record, undone=False)
    run.rewind(run.latest())
    assert run.record["jumps"] == []
    after = jump(run, run.latest(), undone=False)
    assert run.latest() == after
    run.rewind(after)
    assert [entry["to"] for entry in run.record["jumps"]] == [14]


def test_a_jump_that_is_made_again_takes_the_place_of_the_former(run):
    run.note_jump(JumpRecord(4, 14, 4, "ols", (0, 4), 14), undone=False)
    run.note_jump(JumpRecord(4, 14, 4, "ols", (0, 4), 14, reason="worse"), undone=True)
    assert run.record["jumps"] == []
    assert [entry["reason"] for entry in run.record["jumps_undone"]] == ["worse"]


def test_after_a_jump_the_weights_are_those_it_landed_on_and_the_rest_is_linked(run):
    before = save(run, replace(start(run), step=4, virtual_step=4, leg_steps=4))
    kept = {path.name: path.stat().st_ino for path in before.path.iterdir()}
    after = jump(run, before, undone=False)
    now = {path.name: path.stat().st_ino for path in after.path.iterdir()}
    assert now["optimizer.pt"] == kept["optimizer.pt"]
    assert (after.path / "model.safetensors").read_text() == "weights 14"
    assert now["model.safetensors"] == (run.checkpoint(14) / "model.safetensors").stat().st_ino
    assert after.to_dict() == before.to_dict() | {
        "virtual_step": 14,
        "leg_start": 14,
        "leg_steps": 0,
        "fresh_optimizer": True,
    }
    assert not before.path.exists()
    assert run.latest() == after


def test_a_model_is_linked_without_what_others_say_of_it(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", "vocab.txt"]
    for name in [*model, "ckptlin.json", "trainer_state.json", "state.json", "optimizer.pt", "README.md"]:
        (source / name).write_text(name)
    (source / "model.txt").mkdir()
    link_model(source, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(model)


def test_a_run_is_for_one_process(tmp_path):
    path = tmp_path / "run"
    with open_run(path, CONFIG, versions=VERSIONS) as run:
        start(run)
        before = contents(path)
        for overwrite in (False, True):
            with (
                pytest.raises(InputError, match="another process is training"),
                open_run(path, CONFIG, versions=VERSIONS, overwrite=overwrite),
            ):
                pytest.fail("two processes would train it")
        assert contents(path) == before
    with open_run(path, CONFIG, versions=VERSIONS) as run:
        assert run.latest() is not None


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "run"
    write_run(path)
    before = contents(path)
    changed = replace(CONFIG, seed=7, optimizer=OptimizerConfig(lr=1e-5))
    with (
        pytest.raises(InputError, match=r"other settings \(seed, optimizer\.lr differ\).*--overwrite"),
        open_run(path, changed, versions=VERSIONS),
    ):
        pytest.fail("it would go on as another run")
    assert contents(path) == before


def test_what_does_not_change_the_weights_may_be_changed(tmp_path):
    path = tmp_path / "run"
    write_run(path)
    changed = replace(CONFIG, steps=99, log=LogConfig(tensorboard=False), stop=StopConfig(collapse=0))
    with open_run(path, changed, versions=VERSIONS) as run:
        assert run.record["config"]["steps"] == 99
    assert "steps: 99" in (path / "config.yaml").read_text()


def test_more_steps_are_another_run_where_the_learning_rate_falls_to_the_last(tmp_path):
    falling = replace(CONFIG, optimizer=OptimizerConfig(schedule="cosine"))
    with open_run(tmp_path / "run", falling, versions=VERSIONS):
        pass
    with (
        pytest.raises(InputError, match=r"\(steps differ\)"),
        open_run(tmp_path / "run", replace(falling, steps=99), versions=VERSIONS),
    ):
        pytest.fail("its first steps were made with other rates")


def test_what_is_no_run_is_left_alone(tmp_path):
    for name in ("directory", "file"):
        path = tmp_path / name
        if name == "file":
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "notes.txt").write_text("mine")
        for overwrite in (False, True):
            with (
                pytest.raises(OutputExistsError, match="is no training run"),
                open_run(path, CONFIG, versions=VERSIONS, overwrite=overwrite),
            ):
                pytest.fail("it would write between other files")
    assert (tmp_path / "directory/notes.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    with open_run(tmp_path / "run", CONFIG, versions=VERSIONS) as run:
        assert run.latest() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": 5}', "{"])
def test_a_damaged_record_is_named(tmp_path, content):
    write_run(tmp_path / "run")
    (tmp_path / "run/ckptlin-train.json").write_text(content)
    with (
        pytest.raises(CheckpointError, match="is no record of a training run"),
        open_run(tmp_path / "run", CONFIG, versions=VERSIONS),
    ):
        pytest.fail("it has no configuration")


@pytest.mark.parametrize(
    ("content", "expected"), [("{", "cannot be read"), ('{"steps": 5}', "no resume point")]
)
def test_a_damaged_resume_point_is_named(run, content, expected):
    (start(run).path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=expected):
        run.latest()


_SAVE_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
import safetensors.torch, torch
from ckptlin.errors import DiskFullError
from ckptlin.rl.run_directory import open_run
from tests.run_directories import CONFIG, VERSIONS, start

weights = {"w": torch.zeros(1 << 20)}
with open_run(Path(sys.argv[1], "run"), CONFIG, versions=VERSIONS) as run:
    start(run)
    for save in (safetensors.torch.save_file, torch.save):
        try:
            with run.new_checkpoint(2) as path:
                save(weights, path / "model.safetensors")
        except DiskFullError as error:
            print(error)
    print(*sorted(item.name for item in run.path.glob("*checkpoint*")))
"""


def test_a_full_disk_is_told_as_such_also_where_a_library_wraps_the_error(tmp_path):
    """On a disk of 2 MiB, which takes a mount of its own."""
    inside = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1"'
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("a user may mount no file system of his own here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", tmp_path, sys.executable, _SAVE_ON_A_SMALL_DISK],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    first, second, names = done.stdout.splitlines()
    for message in (first, second):
        assert message.startswith("the disk is full: ")
        assert "checkpoint-2 could not be written; free some space" in message
    assert names == "checkpoint-0"


def test_an_error_in_a_save_leaves_no_half_checkpoint(run):
    start(run)
    with pytest.raises(RuntimeError, match="no more memory"), run.new_checkpoint(2) as path:  # noqa: PT012
        (path / "model.safetensors").write_text("half of it")
        raise RuntimeError("no more memory")
    assert sorted(item.name for item in run.path.glob("*checkpoint*")) == ["checkpoint-0"]


def test_a_state_tells_all_but_its_place():
    state = TrainState(path=CONFIG.model, step=3, tokens=7)
    assert TrainState.from_dict(CONFIG.model, state.to_dict()) == state
    assert "path" not in state.to_dict()
