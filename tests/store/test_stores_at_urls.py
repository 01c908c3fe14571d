import json
import pickle
import socket
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
from s3fs import S3FileSystem

from ckptlin.errors import StepConflictError, StoreError, StoreLockedError
from ckptlin.export import export
from ckptlin.extrapolate import extrapolate
from ckptlin.fit import fit, read_summary
from ckptlin.info import info
from ckptlin.ingest import ingest
from ckptlin.source import open_source
from ckptlin.store import url_lock
from ckptlin.store.journal import JOURNAL
from ckptlin.store.lock import LOCK_FILE
from ckptlin.store.store import TrajectoryStore
from ckptlin.store.url_files import UrlFiles
from ckptlin.store.writer import StoreWriter
from ckptlin.verify import verify
from tests.command_line import call, call_json, refusal
from tests.runs import assert_holds, file_contents, weights_at
from tests.s3 import upload

FIRST, MORE = (10, 20, 30), (40, 50)


@pytest.fixture
def memory_url():
    """Where a new store may lie that takes no time to write to."""
    fsspec.filesystem("memory").store.clear()
    return "memory://stores/run.store"


@pytest.fixture(params=["s3", "memory"])
def url(request):
    """Where a new store may lie."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def s3_url(s3_bucket):
    return f"{s3_bucket}/stores/run.store"


def objects(url):
    """Every object below a URL, by its key."""
    files = UrlFiles(url)
    return {key: files.read(key) for key, _ in files.list_below("")}


def chunks(contents):
    return {key: data for key, data in contents.items() if key != "zarr.json" and not key.endswith(LOCK_FILE)}


def holds(url, steps):
    store = TrajectoryStore(url)
    assert_holds(store, {step: weights_at(step) for step in steps})
    assert verify(store, num_workers=1).problems == ()
    return store


@pytest.fixture
def interrupt(monkeypatch):
    """Make a call in which writing a key, or what begins with it, raises."""

    def call_until(key, function, *args, error=KeyboardInterrupt, after=False, **kwargs):
        write = UrlFiles.write

        def interrupted(self, written, data):
            if after:
                write(self, written, data)
            if written.startswith(key):
                raise error
            if not after:
                write(self, written, data)

        with monkeypatch.context() as patch:
            patch.setattr(UrlFiles, "write", interrupted)
            with pytest.raises(error):
                function(*args, **kwargs)

    return call_until


def test_a_store_at_a_url_is_the_local_one(url, make_run, tmp_path):
    run = make_run(FIRST)
    here, there = ingest(run, tmp_path / "store"), ingest(run, url)
    assert there.store.location == url
    assert (there.added, there.stored_bytes) == (here.added, here.stored_bytes)
    found = objects(url)
    assert found == {k: v for k, v in file_contents(tmp_path / "store").items() if k != LOCK_FILE}
    holds(url, FIRST)
    assert ingest(run, f"{url}/").present == FIRST
    assert objects(url) == found


def test_a_store_at_a_url_is_appended_to(url, make_run, tmp_path):
    ingest(make_run(FIRST), url)
    result = ingest(make_run(MORE), url)
    assert (result.added, result.present) == (MORE, FIRST)
    assert holds(url, FIRST + MORE).record.commit == 2
    ingest(make_run(FIRST), tmp_path / "store")
    assert not any(key.startswith(".") for key in objects(url))


@pytest.mark.parametrize("before", [(), FIRST])
@pytest.mark.parametrize("key", ["weights/model.norm.weight/c/", "zarr.json"])
def test_an_interrupted_ingest_is_gone_on_with(s3_url, make_run, interrupt, before, key):
    if before:
        ingest(make_run(before, name="before"), s3_url, num_workers=1)
    run = make_run(before + MORE)
    interrupt(key, ingest, run, s3_url, num_workers=1)
    assert JOURNAL in {key.partition("/")[0] for key in objects(s3_url)}
    assert LOCK_FILE not in objects(s3_url)
    if before:
        holds(s3_url, before)
    else:
        assert "holds no trajectory store" in refusal("info", s3_url)
    result = ingest(run, s3_url, num_workers=1)
    assert result.resumed_chunks > 0
    holds(s3_url, before + MORE)
    assert not any(key.startswith(".") for key in objects(s3_url))


def test_after_another_ingest_nothing_is_left_of_an_interrupted_one(memory_url, make_run, interrupt):
    interrupt("zarr.json", ingest, make_run((*FIRST, *MORE)), memory_url, num_workers=1)
    other = make_run((15, 16), name="other")
    ingest(other, memory_url, num_workers=1)
    contents = objects(memory_url)
    UrlFiles(memory_url).remove_tree("")
    ingest(other, memory_url, num_workers=1)
    assert objects(memory_url) == contents


@pytest.mark.parametrize("before", [(), FIRST])
def test_an_error_leaves_what_was_there(memory_url, make_run, interrupt, before):
    if before:
        ingest(make_run(before), memory_url)
    contents = objects(memory_url)
    interrupt("zarr.json", ingest, make_run(before + MORE), memory_url, error=ZeroDivisionError)
    found = objects(memory_url)
    assert found.keys() == contents.keys()
    assert {
        k for k in found if found[k] != contents[k] and "/c/0" not in k
    } == set()  # rows that were filled up
    if before:
        holds(memory_url, before)


def test_a_store_at_a_url_is_not_built_anew(memory_url, make_run):
    run = make_run(FIRST)
    ingest(run, memory_url)
    contents = objects(memory_url)
    make_run((5,))
    said = refusal("ingest", run, memory_url)
    assert said.startswith(
        f"{memory_url} would have to be built anew, because a step lies before its last one (30)"
    )
    assert "into a store at a new URL" in said
    with pytest.raises(StepConflictError, match="cannot be built anew"), StoreWriter(memory_url, fresh=True):
        pass
    assert objects(memory_url) == contents


def test_other_objects_are_left_alone(s3_bucket, make_run, tmp_path):
    run = make_run(FIRST)
    upload(run, f"{s3_bucket}/run")
    contents = objects(f"{s3_bucket}/run")
    assert refusal("ingest", run, f"{s3_bucket}/run").startswith(
        f"{s3_bucket}/run holds other objects, such as"
    )
    assert objects(f"{s3_bucket}/run") == contents
    ingest(f"{s3_bucket}/run", f"{s3_bucket}/store")
    holds(f"{s3_bucket}/store", FIRST)


def test_a_fit_at_a_url_is_the_local_one(url, make_run, tmp_path):
    run = make_run(FIRST)
    here, there = ingest(run, tmp_path / "store").store, ingest(run, url).store
    ours, theirs = fit(here, num_workers=1), fit(there, num_workers=1)
    assert theirs.summary.to_dict() == ours.summary.to_dict()
    assert read_summary(TrajectoryStore(url)).to_dict() == ours.summary.to_dict()
    # Groups have an id of their own in every fit.
    ours = {k: v for k, v in file_contents(tmp_path / "store/fits").items() if k != "default/zarr.json"}
    theirs = {k.removeprefix("fits/"): v for k, v in objects(url).items() if k.startswith("fits/")}
    del theirs["default/zarr.json"]
    assert theirs == ours
    assert not any(key.startswith(".") for key in objects(url))
    assert verify(TrajectoryStore(url)).problems == ()


def test_a_fit_at_a_url_is_replaced(url, make_run):
    store = ingest(make_run(FIRST + MORE), url).store
    fit(store, steps="10:30", maps={"r2": "float32", "intercept": "float32"})
    fit(store, name="other", steps="20:")
    fit(store)
    again = TrajectoryStore(url)
    assert again.fit_record().steps == FIRST + MORE
    assert again.fit_record("other").steps == (20, 30, *MORE)
    assert not any("intercept" in key for key in objects(url))
    assert verify(again).problems == ()


STAGES = {
    "the maps": ".fits/default/r2/",
    "its metadata": ".fits/default/zarr.json",
    "the root": "zarr.json",
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fit_that_fails_before_it_is_complete_leaves_the_former_one(
    memory_url, make_run, interrupt, stage, error
):
    store = ingest(make_run(FIRST + MORE), memory_url).store
    former = fit(store, steps="10:30").summary.to_dict()
    interrupt(STAGES[stage], fit, store, num_workers=1, error=error)
    again = TrajectoryStore(memory_url)
    assert read_summary(again).to_dict() == former
    assert verify(again).problems == ()
    new = fit(again).summary.to_dict()
    assert read_summary(TrajectoryStore(memory_url)).to_dict() == new
    assert not any(key.startswith(".") for key in objects(memory_url))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("stage", ["remove_tree", "move"])
def test_a_fit_that_fails_while_it_is_exchanged_leaves_a_store_without_it(
    memory_url, make_run, monkeypatch, stage, error
):
    store = ingest(make_run(FIRST + MORE), memory_url).store
    fit(store, steps="10:30")
    fit(store, name="other")
    with monkeypatch.context() as patch:
        real, num_calls = getattr(UrlFiles, stage), 0

        def failing(self, *keys):
            nonlocal num_calls
            if keys[-1] != "fits/default" or num_calls:
                return real(self, *keys)
            num_calls += 1
            if stage == "move":
                UrlFiles.write(self, "fits/default/zarr.json", b"{}")  # some of it was copied
            raise error

        patch.setattr(UrlFiles, stage, failing)
        with pytest.raises(error):
            fit(store)
    again = TrajectoryStore(memory_url)
    assert list(again.record.fits) == ["other"]
    assert verify(again).problems == ()
    fit(again)
    again = TrajectoryStore(memory_url)
    assert again.fit_record().steps == FIRST + MORE
    assert verify(again).problems == ()
    assert not any(key.startswith(".") for key in objects(memory_url))


def lock_of(url, **changes):
    lock = {"token": "0", "host": "elsewhere", "pid": 7, "machine": "another one", "renewed": time.time()}
    UrlFiles(url).write(LOCK_FILE, json.dumps(lock | changes).encode())


def test_a_second_writer_is_refused(url, make_run):
    run = make_run(FIRST)
    with StoreWriter(url, fresh=True):
        with pytest.raises(StoreLockedError, match=f"process [0-9]+ on {socket.gethostname()} is writing to "):
            ingest(run, url)
        assert LOCK_FILE in objects(url)
    assert objects(url) == {}
    ingest(run, url)
    lock_of(url, renewed=time.time() - 60)
    said = refusal("ingest", make_run(MORE), url)
    assert said.startswith(f"process 7 on elsewhere is writing to {url}, which renewed its lock 60 s ago; wait")
    UrlFiles(url).remove(LOCK_FILE)
    holds(url, FIRST)


@pytest.mark.parametrize("why", ["old", "process is gone", "garbled"])
def test_a_stale_lock_is_taken_over(memory_url, make_run, monkeypatch, why):
    monkeypatch.setattr(url_lock, "_SETTLE_S", 0.01)
    ingest(make_run(FIRST), memory_url)
    if why == "old":
        lock_of(memory_url, renewed=time.time() - 151)
    elif why == "process is gone":
        monkeypatch.setattr(url_lock, "_machine", lambda: "this one")
        monkeypatch.setattr(url_lock, "_is_running", lambda pid: pid != 7)
        lock_of(memory_url, machine="this one")
    else:
        UrlFiles(memory_url).write(LOCK_FILE, b"?")
    ingest(make_run(MORE), memory_url)
    holds(memory_url, FIRST + MORE)
    assert LOCK_FILE not in objects(memory_url)


def test_who_lost_the_lock_does_not_commit(memory_url, make_run, monkeypatch):
    ingest(make_run(FIRST), memory_url)
    contents = objects(memory_url)
    commit_root = StoreWriter._commit_root

    def after_another_took_over(self, record):
        lock_of(memory_url)
        commit_root(self, record)

    monkeypatch.setattr(StoreWriter, "_commit_root", after_another_took_over)
    with pytest.raises(StoreLockedError, match="has taken over the lock of"):
        ingest(make_run(MORE), memory_url)
    assert objects(memory_url)["zarr.json"] == contents["zarr.json"]
    assert json.loads(objects(memory_url)[LOCK_FILE])["host"] == "elsewhere"  # it is not ours to remove


def test_a_lock_is_renewed(s3_url, monkeypatch):
    monkeypatch.setattr(url_lock, "_RENEW_S", 0.01)
    with url_lock.UrlLock(UrlFiles(s3_url)) as lock:
        first = UrlFiles(s3_url).read(LOCK_FILE)
        while UrlFiles(s3_url).read(LOCK_FILE) == first:
            time.sleep(0.01)
        lock.check()
        while not lock._has_lost:
            lock_of(s3_url)  # again: at this pace a renewal may fall between its look and its write
            time.sleep(0.05)
    assert json.loads(UrlFiles(s3_url).read(LOCK_FILE))["host"] == "elsewhere"


def test_a_service_without_conditional_requests_still_locks(s3_url, make_run, monkeypatch):
    pipe_file = S3FileSystem._pipe_file

    async def put(self, path, data, mode="overwrite", **kwargs):
        if mode == "create":
            raise NotImplementedError
        return await pipe_file(self, path, data, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_pipe_file", put)
    S3FileSystem.clear_instance_cache()
    with StoreWriter(s3_url, fresh=True), pytest.raises(StoreLockedError, match="is writing to"):
        ingest(make_run(FIRST), s3_url)
    ingest(make_run(FIRST), s3_url)
    holds(s3_url, FIRST)


def test_every_command_takes_a_url(s3_bucket, make_run, tmp_path):
    run, url = upload(make_run(FIRST), f"{s3_bucket}/run"), f"{s3_bucket}/run.store"
    assert call_json("ingest", run, url, "--dry-run")["store"] == url
    assert call_json("ingest", run, url, "--quiet")["store"] == url
    assert call_json("fit", url, "--quiet")["source"] == url
    assert call_json("info", url)["location"] == url
    assert call_json("verify", url)["ok"]
    ingest(run, tmp_path / "store")
    for source in (url, tmp_path / "store"):
        name = "there" if source == url else "here"
        call("extrapolate", source, "--step", "50", "--out", tmp_path / f"{name}-50", "--quiet")
        call("export", source, "--step", "20", "--out", tmp_path / f"{name}-20")
    for step in (20, 50):
        ours, theirs = (file_contents(tmp_path / f"{name}-{step}") for name in ("here", "there"))
        assert theirs["model.safetensors"] == ours["model.safetensors"]
        assert theirs.keys() == ours.keys()
    call("plot", url, "--out", tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3
    assert call_json("fit", f"file://{tmp_path}/store", "--quiet")["source"] == str(tmp_path / "store")


def test_functions_take_what_was_opened_at_a_url(url, make_run, tmp_path):
    ingest(make_run(FIRST), url)
    store = open_source(url)
    assert isinstance(store, TrajectoryStore)
    assert info(store).location == url
    extrapolate(store, 50, tmp_path / "step-50", method="ols", num_workers=1)
    export(store, 10, tmp_path / "step-10")
    with pytest.raises(ValueError, match="is no directory"):
        store.path  # noqa: B018


def test_worker_processes_write_to_a_url(s3_url, make_run):
    ingest(make_run(FIRST), s3_url)
    store = pickle.loads(pickle.dumps(TrajectoryStore(s3_url)))
    (block,) = store.blocks("model.norm.weight")
    assert store.read_block(block, [0]).shape == (1, 4)
    told = []
    files = pickle.loads(pickle.dumps(store.files))
    files.write_behind("a", b"1", lambda: told.append(store.files.read("a")))
    assert told == [b"1"]


def test_damage_at_a_url_is_named(memory_url, make_run):
    ingest(make_run(FIRST), memory_url)
    key = "weights/model.norm.weight/c/0/0"
    UrlFiles(memory_url).remove(key)
    (problem,) = verify(TrajectoryStore(memory_url)).problems
    assert f"is missing: {memory_url}/{key}; restore" in problem


def test_what_is_not_there_is_told_in_one_sentence(s3_bucket, make_run):
    assert refusal("info", f"{s3_bucket}/x").startswith(
        f"{s3_bucket}/x holds no trajectory store; make a store"
    )
    assert refusal("verify", "s3://no-such-bucket/x").startswith("s3://no-such-bucket/x holds no trajectory")
    said = refusal("ingest", make_run(FIRST), "s3://no-such-bucket/x")
    assert said.startswith("s3://no-such-bucket/x/.lock cannot be written: The specified bucket does not exist")


@pytest.mark.parametrize("command", ["ingest", "fit", "info"])
def test_missing_credentials_are_told_in_one_sentence(s3_bucket, make_run, monkeypatch, command):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    run = [make_run(FIRST)] if command == "ingest" else []
    said = refusal(command, *run, f"{s3_bucket}/store")
    assert "cannot be read: Unable to locate credentials; check the address" in said


def test_denied_writes_are_told_in_one_sentence(s3_url, make_run, monkeypatch):
    pipe_file = S3FileSystem._pipe_file

    async def deny(self, path, *args, **kwargs):
        if "/weights/" in path:
            raise PermissionError("Access\nDenied.")
        return await pipe_file(self, path, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_pipe_file", deny)
    S3FileSystem.clear_instance_cache()  # instances keep the methods that they were made with
    said = refusal("ingest", make_run(FIRST), s3_url)
    assert said.startswith(f"{s3_url}/weights/")
    assert "cannot be written: Access Denied; check the address, the credentials" in said
    assert objects(s3_url) == {}


def test_an_error_of_an_earlier_object_is_raised_by_the_next_call(monkeypatch):
    files = UrlFiles("memory://behind")
    monkeypatch.setattr("ckptlin.store.url_files._MAX_BYTES_BEHIND", 2)

    def write(self, key, data):
        raise StoreError(key)

    with monkeypatch.context() as patch:
        patch.setattr(UrlFiles, "write", write)
        files.write_behind("a", b"123")
        with pytest.raises(StoreError, match="a"):
            files.write_behind("b", b"123")
    files.write_behind("c", b"1234")
    files.flush()
    assert [files.read(key) for key in "abc"] == [None, None, b"1234"]


def test_keys_with_signs_of_patterns_are_plain_keys(url):
    files = UrlFiles(url)
    for key in ("a[0]/x*", "a[0]/y%2F?", "a0/x"):
        files.write(key, key.encode())
    assert sorted(files.names("")) == ["a0", "a[0]"]
    assert sorted(files.list_below("a[0]")) == [("a[0]/x*", 7), ("a[0]/y%2F?", 10)]
    assert (files.size("a[0]/x*"), files.tail("a[0]/x*", 2), files.size("a[0]")) == (7, b"x*", None)
    files.move("a[0]", "b[1]")
    files.remove_tree("b[1]/x*")
    assert {key for key, _ in files.list_below("")} == {"a0/x", "b[1]/y%2F?"}


READ_BY_ZARR = """
import sys, zarr
weights = zarr.open_group(sys.argv[1], mode="r")["weights"]
print(weights["step"][:].tolist(), weights["model.norm.weight"][:].tobytes().hex())
"""


def test_plain_zarr_opens_a_store_at_a_url(s3_url, make_run):
    # In a process of its own: zarr leaves the connections of s3fs open, and aiohttp warns of them.
    ingest(make_run(FIRST), s3_url)
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_ZARR, s3_url], capture_output=True, text=True, check=True
    )
    norm = np.stack([weights_at(step)["model.norm.weight"] for step in FIRST])
    assert done.stdout == f"{list(FIRST)} {norm.tobytes().hex()}\n"
