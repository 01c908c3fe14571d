import os
import threading

import pytest

from ckptlin.checkpoints.open_files import OpenFiles, read_fully


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / str(i) for i in range(5)]
    for path in paths:
        path.write_bytes(b"0123456789")
    return paths


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_only_so_many_idle_descriptors_stay_open(paths):
    files = OpenFiles(2)
    for path in paths * 3:
        with files.borrow(path):
            assert len(files) <= 3
    assert len(files) == 2
    files.close()
    assert len(files) == 0


def test_a_descriptor_is_used_again(paths):
    files = OpenFiles(1)
    with files.borrow(paths[0]) as first:
        pass
    with files.borrow(paths[0]) as second:
        assert first == second
    files.close()


def test_a_descriptor_in_use_outlives_eviction_and_close(paths):
    files = OpenFiles(1)
    with files.borrow(paths[0]) as fd:
        for path in paths[1:]:
            with files.borrow(path):
                pass
        files.close()
        assert os.pread(fd, 3, 2) == b"234"
    assert not is_open(fd)


def test_a_closed_pool_gives_no_descriptor(paths):
    files = OpenFiles(1)
    files.close()
    with pytest.raises(ValueError, match="its checkpoint was closed"), files.borrow(paths[0]):
        pass


def test_threads_share_descriptors(paths):
    files = OpenFiles(2)
    errors = []

    def read(seed):
        for i in range(200):
            out = bytearray(4)
            with files.borrow(paths[(seed + i) % 5]) as fd:
                read_fully(fd, 3, memoryview(out))
            if out != b"3456":
                errors.append(out)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(files) == 2
    files.close()


def test_a_read_in_small_pieces_is_continued(paths, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:3]], at))
    out = bytearray(9)
    with paths[0].open("rb") as file:
        assert read_fully(file.fileno(), 1, memoryview(out)) == 9
    assert out == b"123456789"


def test_a_read_beyond_the_end_says_how_much_there_was(paths):
    with paths[0].open("rb") as file:
        assert read_fully(file.fileno(), 7, memoryview(bytearray(9))) == 3
