"""Reads and writes past the page cache, against what plain files hold."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptlin import direct_io
from ckptlin.direct_io import MIN_DIRECT_BYTES, is_cached, open_direct, read_direct, read_file, write_new_file

SIZES = [0, 1, MIN_DIRECT_BYTES - 1, MIN_DIRECT_BYTES, MIN_DIRECT_BYTES + 1, 4198400, 9449529]
each_size = pytest.mark.parametrize("size", SIZES)


def content(size):
    return np.random.default_rng(size).bytes(size)


def drop(path):
    """Make a file leave the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(autouse=True)
def _linux():
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no reads past its cache")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content(SIZES[-1]))
    if open_direct(path) is None:
        pytest.skip("this file system has no reads past the cache")
    return path


@each_size
@pytest.mark.parametrize("cold", [False, True])
def test_a_file_comes_back(tmp_path, size, cold):
    path = tmp_path / "file"
    path.write_bytes(content(size))
    if cold:
        drop(path)
    assert read_file(path) == content(size)


@each_size
def test_a_file_is_written(tmp_path, size):
    fd = write_new_file(tmp_path / "file", content(size))
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == content(size)


def test_reading_past_the_cache_leaves_nothing_in_it(file):
    drop(file)
    with file.open("rb") as opened:
        assert not is_cached(opened.fileno(), 0, SIZES[-1])
        read_file(file)
        assert not is_cached(opened.fileno(), 0, SIZES[-1])
        file.read_bytes()
        assert is_cached(opened.fileno(), 0, SIZES[-1])


def test_what_is_written_past_the_cache_is_not_in_it(tmp_path, file):
    fd = write_new_file(tmp_path / "new", content(SIZES[-1]))
    os.close(fd)
    with (tmp_path / "new").open("rb") as opened:
        assert not is_cached(opened.fileno(), 0, 4 << 20)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_part_is_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "parts"
    whole = content(SIZES[-1])
    if not path.exists():
        path.write_bytes(whole)
    fd = open_direct(path)
    if fd is None:
        pytest.skip("this file system has no reads past the cache")
    start = data.draw(st.integers(0, len(whole)))
    out = bytearray(data.draw(st.integers(0, len(whole) - start + 9000)))
    found = read_direct(fd, start, memoryview(out))
    os.close(fd)
    assert found == min(len(out), len(whole) - start)
    assert bytes(out[:found]) == whole[start : start + found]


def test_an_existing_file_is_not_written_over(tmp_path):
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "file", content(MIN_DIRECT_BYTES))
    assert (tmp_path / "file").read_bytes() == b"before"


def test_where_direct_writes_are_refused_the_cache_is_used(tmp_path, monkeypatch):
    """Some file systems open such a file and then refuse to write to it."""

    def refuse(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(direct_io.os, "pwrite", refuse)
    fd = write_new_file(tmp_path / "file", content(MIN_DIRECT_BYTES))
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == content(MIN_DIRECT_BYTES)


def test_a_system_without_direct_reads_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(direct_io, "_O_DIRECT", 0)
    monkeypatch.setattr(direct_io, "_LIBC", None)
    fd = write_new_file(tmp_path / "file", content(MIN_DIRECT_BYTES))
    os.close(fd)
    assert open_direct(tmp_path / "file") is None
    assert read_file(tmp_path / "file") == content(MIN_DIRECT_BYTES)
