"""Ctrl-C at every point of a checkpoint that is written, and again while what it left is cleared away."""

import os
import shutil
import signal
from contextlib import suppress
from itertools import count

import numpy as np
import pytest

from ckptlin import atomic, interrupts
from ckptlin.checkpoints import CheckpointWriter, WeightFilePlan, build_header, output_directory, writer
from ckptlin.dtypes import from_safetensors
from ckptlin.trajectory import TensorSpec
from tests.interruption import InterruptAt

PLANS = [
    WeightFilePlan(f"{name}.safetensors", build_header([TensorSpec(name, from_safetensors("F32"), (4,))]))
    for name in ("v", "w")
]
MODULES = (atomic, interrupts, output_directory, shutil, writer)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    """Nothing here is about power cuts, and hundreds of writes wait for no disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def write(out, value, meanwhile=lambda: None):
    with CheckpointWriter(out, PLANS, overwrite=True) as checkpoint:
        for name in ("v", "w"):
            checkpoint.write(name, 0, np.full(4, value, np.float32))
        checkpoint.add_file("config.json", b"{}")
        meanwhile()
        checkpoint.commit()


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def states(tmp_path):
    """What may lie in the directory: the former checkpoint, and the new one."""
    found = []
    for value in (0, 1):
        write(tmp_path / "out", value)
        found.append(contents(tmp_path / "out"))
    return found


@pytest.fixture(params=["exchange", "two renames"])
def _renames(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)


@pytest.mark.usefixtures("_renames")
def test_an_interrupt_at_any_point_leaves_the_former_checkpoint_or_the_new_one(tmp_path, states):
    out = tmp_path / "out"
    seen = set()
    for number in count(1):
        if states.index(contents(out)) == 1:
            write(out, 0)
        interrupt = InterruptAt(number, MODULES)
        try:
            with interrupt:
                interrupt.start()
                write(out, 1)
        except KeyboardInterrupt:
            pass
        else:
            assert not interrupt.is_sent, f"the interrupt at point {number} was lost"
        assert [path.name for path in tmp_path.iterdir()] == ["out"], number
        seen.add(states.index(contents(out)))
        if not interrupt.is_sent:
            break
    assert number > 200
    assert seen == {0, 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("is_there", [False, True])
def test_an_interrupt_at_any_point_of_the_clean_up_leaves_nothing_half_made(tmp_path, states, error, is_there):
    """The second Ctrl-C of someone in a hurry, or a first that comes after an error."""
    if not is_there:
        shutil.rmtree(tmp_path / "out")
    before = contents(tmp_path)
    for number in count(1):
        interrupt = InterruptAt(number, MODULES)

        def fail(interrupt=interrupt):
            interrupt.start()
            if error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise error

        # Not by pytest.raises, which would keep the writer in a traceback.
        with suppress(error, KeyboardInterrupt), interrupt:
            write(tmp_path / "out", 1, fail)
            pytest.fail("no error came")
        assert interrupt.is_sent or number > 20
        assert contents(tmp_path) == before, number
        assert [path.name for path in tmp_path.iterdir()] == ["out"] * is_there, number
        if not interrupt.is_sent:
            break
