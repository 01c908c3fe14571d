import errno
import os
import pickle
from pathlib import Path

import pytest

from ckptlin.errors import DiskFullError
from ckptlin.store.local_files import PARTIAL_DIR, LocalFiles
from tests.runs import file_contents


@pytest.fixture
def files(tmp_path):
    return LocalFiles(tmp_path)


def test_a_file_is_written_read_and_listed(files, tmp_path):
    files.write("a/b/c", b"one")
    files.write("a/d", b"")
    assert files.read("a/b/c") == b"one"
    assert files.read("a/nothing") is None
    assert (files.size("a/b/c"), files.size("a/d"), files.size("x")) == (3, 0, None)
    assert files.tail("a/b/c", 2) == b"ne"
    assert sorted(files.list_below("a")) == [("a/b/c", 3), ("a/d", 0)]
    assert list(files.list_below("nowhere")) == []


def test_a_file_is_replaced_whole(files, tmp_path):
    files.write("a", b"one")
    with (tmp_path / "a").open("rb") as reader:
        files.write("a", b"two, and longer")
        assert reader.read() == b"one"
    assert files.read("a") == b"two, and longer"


def test_keys_can_be_removed(files, tmp_path):
    for key in ("a/b/c", "a/b/d", "e"):
        files.write(key, b"x")
    files.remove("e")
    files.remove("e")
    files.remove_tree("a/b")
    files.remove_tree("a/b")
    files.write("a/b/c", b"y")  # its directory is made again
    files.sweep()
    assert file_contents(tmp_path) == {"a/b/c": b"y"}
    assert not (tmp_path / PARTIAL_DIR).exists()


def test_every_file_is_synced_before_it_gets_its_name_and_its_directories_after(files, tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(fd):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def noted_rename(path, target):
        events.append(("rename", Path(path), Path(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    files.write("a/b/c", b"one")
    (_, synced), (_, source, target) = events
    assert (synced, target) == (source, tmp_path / "a/b/c")
    events.clear()
    files.sync()
    assert [path for _, path in events] == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    events.clear()
    files.sync()
    assert events == []


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_was_there(files, tmp_path, monkeypatch, operation, code):
    files.write("a", b"one")
    owner = Path if operation == "replace" else os
    real = getattr(owner, operation)

    def full(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, operation, full)
    with pytest.raises(
        DiskFullError, match=r"the disk is full: .*/a \(3 bytes\) could not be written; free some"
    ):
        files.write("a", b"two")
    monkeypatch.setattr(owner, operation, real)
    assert file_contents(tmp_path) == {"a": b"one"}
    files.write("a", b"two")
    assert file_contents(tmp_path) == {"a": b"two"}


def test_a_short_write_is_gone_on_with(files, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    files.write("a", b"0123456789")
    assert files.read("a") == b"0123456789"


def test_another_error_is_passed_on(files, tmp_path):
    files.write("a", b"one")
    with pytest.raises(FileExistsError):
        files.write("a/b", b"two")
    assert file_contents(tmp_path) == {"a": b"one"}


def test_a_file_that_is_written_behind_is_told_of_when_it_has_its_name(files, tmp_path):
    done = []
    for i in range(40):  # more than may be on their way at a time
        files.write_behind(f"a/{i}", b"x" * i, lambda i=i: done.append((i, (tmp_path / f"a/{i}").exists())))
    files.flush()
    assert sorted(done) == [(i, True) for i in range(40)]
    assert file_contents(tmp_path) == {f"a/{i}": b"x" * i for i in range(40)}
    files.write_behind("b", b"after a flush")
    files.sync()
    assert files.read("b") == b"after a flush"


def test_what_goes_wrong_behind_is_raised_by_the_next_call_and_leaves_nothing(files, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.write("a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        files.write_behind("a", b"new", lambda: pytest.fail("it is not durable"))
        with pytest.raises(DiskFullError, match=r"the disk is full: .*a \(3 bytes\) could not be written"):
            files.flush()
    files.flush()  # told once
    files.sweep()
    assert file_contents(tmp_path) == {"a": b"old"}


def test_a_copy_for_another_process_waits_for_the_disk(files, tmp_path):
    copy = pickle.loads(pickle.dumps(files))
    done = []
    copy.write_behind("a/b", b"x", lambda: done.append(files.read("a/b")))
    assert done == [b"x"]
