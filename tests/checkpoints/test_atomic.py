import errno
import os
import sys

import pytest

from ckptlin import atomic
from ckptlin.errors import DiskFullError


@pytest.fixture
def directories(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    return tmp_path / "new", tmp_path / "old"


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_directory_takes_another_s_place(directories, monkeypatch, can_exchange):
    new, old = directories
    if not can_exchange:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    atomic.replace_directory(new, old)
    assert names_in(old) == ["new"]
    assert names_in(old.parent) == ["old"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux")
def test_on_linux_both_names_exist_at_every_moment(directories):
    new, old = directories
    if not atomic.exchange(new, old):
        pytest.skip("the file system of the temporary directory cannot exchange names")
    assert (names_in(new), names_in(old)) == (["old"], ["new"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux")
def test_an_exchange_with_nothing_is_an_error(directories):
    new, _ = directories
    with pytest.raises(FileNotFoundError):
        atomic.exchange(new, new.with_name("nowhere"))


def test_other_systems_do_not_exchange(directories, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not atomic.exchange(*directories)


def test_the_old_directory_comes_back_when_the_second_rename_fails(directories, monkeypatch):
    new, old = directories
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    with pytest.raises(FileNotFoundError):
        atomic.replace_directory(new.with_name("nowhere"), old)
    assert names_in(old) == ["old"]
    assert names_in(old.parent) == ["new", "old"]


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "state.json"
    atomic.write_file(path, b"one")
    atomic.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names_in(tmp_path) == ["state.json"]


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, OSError)]
)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, code, kind):
    path = tmp_path / "state.json"
    atomic.write_file(path, b"one")

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind):
        atomic.write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert names_in(tmp_path) == ["state.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    atomic.write_file(path, b"one")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(path, b"two")
    assert names_in(tmp_path) == ["state.json"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories_is_no_obstacle(tmp_path, monkeypatch, code):
    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.sync_directory(tmp_path)
