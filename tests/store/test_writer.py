import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

import ckptlin.atomic
import ckptlin.ingest
from ckptlin.errors import DiskFullError, NotAStoreError, StoreLockedError
from ckptlin.ingest import ingest
from ckptlin.store.local_files import LocalFiles
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.writer import JOURNAL, StoreWriter
from ckptlin.verify import verify
from tests.runs import MODEL, assert_holds, file_contents, weights_at

FIRST, MORE = (0, 10, 20), (30, 40)
INGEST = "ckptlin.ingest:ingest"


@pytest.fixture
def store(make_run, tmp_path):
    return ingest(make_run(FIRST), tmp_path / "store", num_workers=1).store


class During:
    """A `Progress` that does something when the first chunk has been written."""

    def __init__(self, action):
        self.action = action
        self.calls = 0

    @contextmanager
    def phase(self, title, num_bytes):
        def advance(num_bytes):
            self.calls += 1
            if self.calls == 1:
                self.action()

        yield advance

    def note(self, message):
        pass


@pytest.mark.parametrize("added", [MORE, (5,)], ids=["append", "rebuild"])
def test_readers_see_the_previous_commit_until_the_next(store, make_run, added):
    def read():
        again = TrajectoryStore(store.path)
        assert again.steps == FIRST
        assert_holds(again, {step: weights_at(step) for step in FIRST})
        with xarray.open_datatree(store.path, engine="zarr") as tree:
            assert tree["weights"]["step"].values.tolist() == list(FIRST)
            scales = [weights_at(step)["model.scale"] for step in FIRST]
            assert tree["weights"]["model.scale"].values.tolist() == scales

    during = During(read)
    ingest(make_run(added), store.path, num_workers=1, progress=during)
    assert during.calls > 1
    assert TrajectoryStore(store.path).steps == tuple(sorted(FIRST + added))
    if added == MORE:
        assert_holds(store, {step: weights_at(step) for step in FIRST})


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "append"])
def test_a_second_writer_is_turned_away(make_run, tmp_path, forked, is_new):
    path = tmp_path / "store"
    if not is_new:
        ingest(make_run(FIRST), path, num_workers=1)
    run = make_run(MORE)

    def another():
        outcome = forked.call(INGEST, run, path, num_workers=1)
        assert outcome.error == "StoreLockedError"
        assert outcome.message.startswith(f"another process is writing to {path}; wait")

    during = During(another)
    result = ingest(run, path, num_workers=1, progress=during)
    assert during.calls
    assert verify(result.store, num_workers=1).problems == ()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "append"])
def test_a_plan_that_another_process_has_overtaken_is_not_carried_out(make_run, tmp_path, monkeypatch, is_new):
    """Both looked at the store before either held the lock; the second must not undo the first one's commit."""
    path = tmp_path / "store"
    if not is_new:
        ingest(make_run((0,)), path, num_workers=1)
    plan_ingest = ckptlin.ingest.plan_ingest

    def overtaken(*args, **kwargs):
        plan = plan_ingest(*args, **kwargs)
        monkeypatch.undo()
        ingest(make_run(MORE, name="other"), path, num_workers=1)
        return plan

    monkeypatch.setattr(ckptlin.ingest, "plan_ingest", overtaken)
    with pytest.raises(StoreLockedError, match=r"has meanwhile written to .*store; run this again"):
        ingest(make_run((10,)), path, num_workers=1)
    steps = MORE if is_new else (0, *MORE)
    assert_holds(TrajectoryStore(path), {step: weights_at(step) for step in steps})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "run", "store"]


def test_a_commit_that_does_not_follow_the_last_one_is_refused(store):
    before = file_contents(store.path)
    for commit in (1, 3):
        with pytest.raises(StoreLockedError, match="meanwhile"), StoreWriter(store.path, fresh=False) as writer:
            writer.commit(replace(store.record, commit=commit, checkpoints=store.record.checkpoints[:1]))
    assert file_contents(store.path) == before


def test_the_root_is_written_last_and_after_everything_else_is_on_the_disk(store, make_run, monkeypatch):
    events = []
    write, write_behind, sync = LocalFiles.write, LocalFiles.write_behind, LocalFiles.sync

    def noted_write(self, key, data):
        events.append(key)
        write(self, key, data)

    def noted_write_behind(self, key, data, done=None):
        def durable():
            events.append(key)
            if done is not None:
                done()

        write_behind(self, key, data, durable)

    def noted_sync(self):
        events.append("sync")
        sync(self)

    monkeypatch.setattr(LocalFiles, "write", noted_write)
    monkeypatch.setattr(LocalFiles, "write_behind", noted_write_behind)
    monkeypatch.setattr(LocalFiles, "sync", noted_sync)
    ingest(make_run(MORE), store.path, num_workers=1)
    assert events[-3:] == ["sync", "zarr.json", "sync"]
    written = events[:-3]
    assert "sync" not in written
    chunks = [i for i, key in enumerate(written) if "/c/" in key and "/step/" not in key]
    documents = [i for i, key in enumerate(written) if key.startswith("weights/") and key.endswith("zarr.json")]
    assert max(chunks) < min(documents)


@pytest.mark.parametrize("stage", ["chunks", "files", "steps", "array metadata", "root"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_at_any_stage_leaves_the_previous_commit(store, make_run, monkeypatch, stage, error):
    """A mistake of ours is cleaned up after; after Ctrl-C the next writer finds what it needs to go on."""
    write = LocalFiles._write_unsynced
    stages = {
        "chunks": lambda key: key.startswith("weights/model.norm.weight/c/"),
        "files": lambda key: key.startswith("files/") and "/c/" in key,
        "steps": lambda key: key == "weights/step/c/0",
        "array metadata": lambda key: key == "weights/model.norm.weight/zarr.json",
        "root": lambda key: key == "zarr.json",
    }

    def failing(self, key, data):
        if stages[stage](key):
            raise error
        return write(self, key, data)

    run = make_run(MORE, config={"another": "config"})
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "_write_unsynced", failing)
        with pytest.raises(error):
            ingest(run, store.path, num_workers=1)
    assert_holds(TrajectoryStore(store.path), {step: weights_at(step) for step in FIRST})
    if error is ZeroDivisionError:
        assert not (store.path / JOURNAL).exists()
        group = zarr.open_group(store.path, mode="r", use_consolidated=False)["weights"]
        assert {array.shape[0] for _, array in group.arrays()} == {len(FIRST)}
        assert len(file_contents(store.path / "files")) == len(store.record.blobs) * 2 + 1
    result = ingest(run, store.path, num_workers=1)
    assert (result.resumed_chunks > 0) == (error is KeyboardInterrupt)
    assert_holds(result.store, {step: weights_at(step) for step in FIRST + MORE})
    assert verify(result.store, num_workers=1).problems == ()
    assert not (store.path / JOURNAL).exists()


@pytest.fixture
def interrupt(monkeypatch):
    """Ingest, and be interrupted by Ctrl-C before a file is written."""

    def ingest_until(run, path, last_key):
        write = LocalFiles._write_unsynced

        def interrupted(self, key, data):
            if key == last_key:
                raise KeyboardInterrupt
            return write(self, key, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "_write_unsynced", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ingest(run, path, num_workers=1)

    return ingest_until


def test_metadata_that_ran_ahead_are_taken_back_by_the_next_writer_of_any_kind(store, make_run, interrupt):
    run = make_run(MORE, config={"of": "the interrupted run"})
    before = file_contents(store.path)
    interrupt(run, store.path, "zarr.json")
    assert json.loads((store.path / "weights/model.scale/zarr.json").read_text())["shape"] == [5]
    with StoreWriter(store.path, fresh=False):
        pass
    after = file_contents(store.path)
    assert {key for key in before if before[key] != after[key]} <= {key for key in before if "/c/0" in key}
    assert {key for key in after if key not in before} == {JOURNAL}  # its chunks may still be gone on with
    result = ingest(make_run((25,), name="other"), store.path, num_workers=1)
    assert result.resumed_chunks == 0
    assert_holds(result.store, {step: weights_at(step) for step in (*FIRST, 25)})
    group = zarr.open_group(store.path, mode="r", use_consolidated=False)
    assert {array.shape[0] for _, array in group["weights"].arrays()} == {4}
    assert sorted(name for name, _ in group["files"].arrays()) == sorted(result.store.record.blobs)


def test_a_journal_with_a_torn_line_is_read_as_far_as_it_goes(make_run, tmp_path, interrupt):
    run = make_run(FIRST)
    interrupt(run, tmp_path / "store", "zarr.json")
    journal = tmp_path / ".store.ingesting" / JOURNAL
    text = journal.read_text()
    num_chunks = len(text.splitlines()) - 1
    journal.write_text(text[: len(text) - 20] + "\0" * 7)
    interrupt(run, tmp_path / "store", "zarr.json")
    assert len(journal.read_text().splitlines()) == len(text.splitlines()) + 1  # the torn one, and it again
    result = ingest(run, tmp_path / "store", num_workers=1)
    assert result.resumed_chunks == num_chunks
    assert_holds(result.store, {step: weights_at(step) for step in FIRST})


def test_a_writer_may_be_interrupted_before_its_first_chunk_and_again_after(make_run, tmp_path, interrupt):
    run = make_run(FIRST)
    order = list(TrajectoryStore(ingest(run, tmp_path / "x", num_workers=1).store.path).tensors)
    interrupt(run, tmp_path / "store", f"weights/{order[0]}/c/0" + "/0" * len(MODEL[order[0]][0]))
    interrupt(run, tmp_path / "store", f"weights/{order[1]}/c/0" + "/0" * len(MODEL[order[1]][0]))
    result = ingest(run, tmp_path / "store", num_workers=1)
    assert result.resumed_chunks == 1
    assert file_contents(tmp_path / "store") == file_contents(tmp_path / "x")


@pytest.mark.parametrize("change", ["touched", "another run", "chunk lost", "chunk cut", "chunk of another"])
def test_an_interrupted_ingest_is_only_gone_on_with_where_it_still_holds(make_run, tmp_path, interrupt, change):
    run = make_run(FIRST)
    interrupt(run, tmp_path / "store", "zarr.json")
    beside = tmp_path / ".store.ingesting"
    num_chunks = len((beside / JOURNAL).read_text().splitlines()) - 1
    chunk = beside / "weights/model.norm.weight/c/0/0"
    data = chunk.read_bytes()
    expected = 0
    if change == "touched":
        os.utime(run / "checkpoint-10/model.safetensors")
    elif change == "another run":
        other = make_run(FIRST, name="other")
        for step in FIRST:
            stat = (run / f"checkpoint-{step}/model.safetensors").stat()
            os.utime(other / f"checkpoint-{step}/model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        run = other
    else:
        expected = num_chunks - 1
        chunk.unlink()
        if change == "chunk cut":
            chunk.write_bytes(data[:-1])
        elif change == "chunk of another":
            chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = ingest(run, tmp_path / "store", num_workers=1)
    assert result.resumed_chunks == expected
    assert_holds(result.store, {step: weights_at(step) for step in FIRST})


def test_a_store_may_be_a_link(make_run, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "big/store")
    for steps in (FIRST, MORE, (5,)):
        result = ingest(make_run(steps), tmp_path / "store", num_workers=1)
    assert result.store.location == str(tmp_path / "store")
    assert (tmp_path / "store").is_symlink()
    assert sorted(path.name for path in (tmp_path / "big").iterdir()) == ["store"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "run", "store"]
    assert verify(result.store, num_workers=1).problems == ()


def test_a_new_store_may_take_the_place_of_an_empty_directory(make_run, tmp_path):
    (tmp_path / "a/store").mkdir(parents=True)
    assert ingest(make_run(FIRST), tmp_path / "a/store", num_workers=1).store.steps == FIRST


@pytest.mark.parametrize("what", ["file", "directory", "zarr group", "damaged store"])
def test_something_else_is_never_written_to(make_run, tmp_path, what):
    path = tmp_path / "there"
    if what == "file":
        path.write_text("mine")
    elif what == "directory":
        path.mkdir()
        (path / "thesis.tex").touch()
    elif what == "zarr group":
        zarr.create_group(path)
    else:
        ingest(make_run(FIRST), path, num_workers=1)
        (path / "zarr.json").write_text("{")
    before = file_contents(tmp_path)
    with pytest.raises(NotAStoreError, match="there"):
        ingest(make_run(FIRST), path, num_workers=1)
    assert {k: v for k, v in file_contents(tmp_path).items() if not k.startswith("run/")} == {
        k: v for k, v in before.items() if not k.startswith("run/")
    }
    with pytest.raises(NotAStoreError):  # and no lock is left behind
        ingest(make_run(FIRST), path, num_workers=1)


def test_what_a_killed_rebuild_left_beside_the_store_is_swept(store, make_run, tmp_path):
    """The former store, which had been exchanged with the new one, but not removed yet."""
    shutil.copytree(store.path, tmp_path / ".store.ingesting")
    ingest(make_run(FIRST), store.path, num_workers=1)  # there is nothing to add
    assert not (tmp_path / ".store.ingesting").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_rebuilt_store_takes_the_other_s_place(store, make_run, tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(ckptlin.atomic, "exchange", lambda *_: False)
    result = ingest(make_run((5,)), store.path, num_workers=1)
    assert_holds(result.store, {step: weights_at(step) for step in (0, 5, 10, 20)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


FILL = """
import sys
from ckptlin.errors import DiskFullError
from ckptlin.ingest import ingest
from ckptlin.store.store import TrajectoryStore
from ckptlin.verify import verify
from pathlib import Path
run, disk = map(Path, sys.argv[1:])
ingest(run / "checkpoint-0", disk / "store")
before = sorted(str(path) for path in disk.rglob("*"))
for store in ("another", "store"):
    try:
        ingest(run, disk / store)
        print("it fitted")
    except DiskFullError as error:
        print(error)
    assert sorted(str(path) for path in disk.rglob("*")) == before
store = TrajectoryStore(disk / "store")
assert store.steps == (0,) and verify(store).problems == (), store
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a file system, as Linux can")
def test_a_file_system_that_is_really_full_is_named_and_nothing_is_left_on_it(make_run, tmp_path):
    """A tmpfs in a mount namespace of its own, which no other process sees."""
    model = {f"w{i}": ((200, 200), np.float32) for i in range(8)}
    run = make_run(range(3), model=model)
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", disk], check=False).returncode:
        pytest.skip("this system lets nobody mount a file system in a namespace of their own")
    mount = f"mount -t tmpfs -o size=2500k none {disk}"
    command = f'{mount} && exec {sys.executable} -W error -c "$FILL" {run} {disk}'
    result = subprocess.run(
        [*unshare, "sh", "-c", command],
        env={**os.environ, "FILL": FILL, "NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    new, append = result.stdout.splitlines()
    assert append.startswith(f"the disk is full: {disk}/store/weights/w")
    assert new.startswith(f"the disk is full: {disk}/.another.ingesting/weights/w")
    assert append.endswith("free some space on the file system of " + f"{disk}/store and run the command again")


def test_a_disk_that_is_plainly_too_small_is_refused_before_anything_is_read(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))
    with pytest.raises(DiskFullError, match=r"will take at least .* but its disk has 10 B free; free some"):
        ingest(make_run(FIRST), tmp_path / "deep/er/store", num_workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_commits_are_counted(store, make_run):
    assert store.record.commit == 1
    assert ingest(make_run(MORE), store.path, num_workers=1).store.record.commit == 2
    assert ingest(make_run((5,)), store.path, num_workers=1).store.record.commit == 3
    assert json.loads(Path(store.path, "zarr.json").read_text())["attributes"]["ckptlin"]["commit"] == 3


def test_a_file_of_no_bytes_is_kept_too(make_run, tmp_path):
    run = make_run(FIRST)
    (run / "checkpoint-10/merges.txt").touch()
    store = ingest(run, tmp_path / "store", num_workers=1).store
    assert store.sidecars(10)["merges.txt"] == b""
    digest = store.checkpoints[1].sidecars["merges.txt"]
    assert zarr.open_group(store.path, mode="r")["files"][digest].shape == (0,)
    assert verify(store, num_workers=1).problems == ()
