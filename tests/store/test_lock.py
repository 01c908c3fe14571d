import fcntl
import subprocess
import sys

import pytest

from ckptlin.errors import StoreLockedError
from ckptlin.store.lock import LOCK_FILE, writer_lock


def test_the_lock_is_held_by_one_and_free_again_afterwards(tmp_path):
    for _ in range(2):
        with (
            writer_lock(tmp_path, "store"),
            pytest.raises(StoreLockedError, match="another process is writing to store; wait"),
            writer_lock(tmp_path, "store"),
        ):
            pass


def test_an_error_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), writer_lock(tmp_path, "store"):
        _ = 1 / 0
    with writer_lock(tmp_path, "store"):
        pass


def test_the_lock_of_a_store_that_has_just_been_replaced_counts_for_nothing(tmp_path, monkeypatch):
    """The writer that was waited for may have put another directory under the name."""
    (tmp_path / "store").mkdir()
    flock = fcntl.flock

    def replaced_first(fd, operation):
        (tmp_path / "store").rename(tmp_path / "former")
        (tmp_path / "store").mkdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_first)
    with pytest.raises(StoreLockedError), writer_lock(tmp_path / "store", "store"):
        pass
    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "store" / LOCK_FILE).touch()
    with writer_lock(tmp_path / "store", "store"):
        pass


def test_the_system_drops_the_lock_of_a_process_that_dies(tmp_path):
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('locked'); input()"
    with subprocess.Popen(
        [sys.executable, "-uc", program, tmp_path / LOCK_FILE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(StoreLockedError), writer_lock(tmp_path, "store"):
                pass
        finally:
            other.kill()
    with writer_lock(tmp_path, "store"):
        pass
