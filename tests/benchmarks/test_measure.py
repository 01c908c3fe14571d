"""What the benchmarks measure, and that they leave nothing behind."""

import sys

import numpy as np
import pytest

from benchmarks.measure import run_measured
from benchmarks.report import Figure
from benchmarks.scratch import Scratch
from benchmarks.synthetic import Architecture


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_the_peak_of_a_command_does_not_hold_the_memory_of_its_parent():
    ballast = np.ones(1 << 26, np.uint8)
    small = run_measured(python("pass")).peak_bytes
    large = run_measured(python(f"b'x' * {1 << 27}")).peak_bytes
    assert small < ballast.nbytes
    assert large > 1 << 27


def test_a_failure_keeps_its_status_and_its_last_words():
    measured = run_measured(python("raise MemoryError('too much')"), check=False)
    assert measured.exit_status == 1
    assert measured.error == "MemoryError: too much"
    assert measured.is_memory_failure
    with pytest.raises(SystemExit, match="exit status 1: MemoryError"):
        run_measured(python("raise MemoryError"))


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match="no-such-command could not be started"):
        run_measured(["no-such-command"])


def test_scratch_keeps_a_run_until_another_is_asked_for_and_is_gone_at_the_end(tmp_path):
    arch = Architecture(16, 1, 2, 1, 32, 64)
    with Scratch(tmp_path) as scratch:
        run = scratch.run(arch, checkpoints=3)
        marker = run / "seen"
        marker.touch()
        assert scratch.run(arch, checkpoints=3) == run
        assert marker.exists()
        assert len(list(scratch.run(arch, checkpoints=2).iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_the_disk_is_made_smaller_and_said_so(tmp_path):
    with Scratch(tmp_path) as scratch:
        scratch._free_bytes = 10**9
        arch = scratch.largest("1.5b", 1.0)
        assert arch.layers < 28
        assert "not of" in scratch.notes[0]


def test_verdicts():
    assert Figure("f", 1.0, 1.4).verdict == "pass"
    assert Figure("f", 2.8, 1.4).verdict == "falls short by 100%"
    assert Figure("f", 2.0, 4.0, at_least=True).verdict == "falls short by 50%"
    assert Figure("f", None, 4.0).verdict == "not measured"
    assert Figure("f", 1.0).verdict == ""
