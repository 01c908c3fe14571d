"""The program that runs beside ours, and what is left of it: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptlin.rl.verl.process import LoggedProcess

# Starts a daemon as Ray does, orphaned and in a session of its own, which writes down its number.
DAEMON = """
import os, subprocess, sys, time, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "stubborn" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print("started", flush=True)
"""
WAITS = DAEMON + "time.sleep(600)\n"


def run(tmp_path, program, *arguments, grace_s=5.0):
    command = [sys.executable, "-c", program, str(tmp_path / "daemon"), *arguments]
    return LoggedProcess(command, log=tmp_path / "log", environment=os.environ, grace_s=grace_s)


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.01)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_exit_status_and_output_are_kept(tmp_path):
    (tmp_path / "log").write_text("of an earlier launch\n")
    program = "import sys; print('one'); print(); print('two', file=sys.stderr); sys.exit(7)"
    with run(tmp_path, program) as process:
        assert process.wait(60) == 7
    assert set(process.last_lines(5)) == {"one", "two"}
    assert len(process.last_lines(1)) == 1
    assert (tmp_path / "log").read_text().startswith("of an earlier launch\n")


def test_a_signal_is_told_as_shells_tell_it(tmp_path):
    with run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.wait(60) == 128 + signal.SIGKILL


def test_a_program_that_is_not_there_is_told(tmp_path):
    with LoggedProcess([str(tmp_path / "none")], log=tmp_path / "log", environment=os.environ) as process:
        assert process.wait(60) == 127
    assert "none cannot be started" in process.last_lines(1)[0]


def test_the_environment_is_the_one_that_is_given(tmp_path):
    command = [sys.executable, "-c", "import os; print(sorted(os.environ))"]
    with LoggedProcess(command, log=tmp_path / "log", environment={"ONLY": "1"}) as process:
        assert process.wait(60) == 0
    assert "'ONLY'" in process.last_lines(1)[0]
    assert "'HOME'" not in process.last_lines(1)[0]


@pytest.mark.parametrize("program", [DAEMON, WAITS], ids=["ended", "running"])
def test_daemons_are_gone_when_the_block_is_left(tmp_path, program):
    with run(tmp_path, program) as process:
        daemon = wait_for(tmp_path / "daemon")
        if program == DAEMON:
            assert process.wait(60) == 0
        else:
            assert process.wait(0.05) is None
            assert is_alive(daemon)
    assert not is_alive(daemon)


def test_what_does_not_end_by_itself_is_killed(tmp_path):
    with run(tmp_path, WAITS, "stubborn", grace_s=0.2):
        daemon = wait_for(tmp_path / "daemon")
    assert not is_alive(daemon)


def test_an_error_in_the_block_ends_the_program_too(tmp_path):
    def fail():
        with run(tmp_path, WAITS):
            assert is_alive(wait_for(tmp_path / "daemon"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not is_alive(wait_for(tmp_path / "daemon"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_daemons_are_gone_when_this_process_is_killed(tmp_path, number):
    ours = f"""
import os, signal, sys
from pathlib import Path
from ckptlin.rl.verl.process import LoggedProcess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
command = [sys.executable, "-c", {WAITS!r}, {str(tmp_path / "daemon")!r}]
with LoggedProcess(command, log=Path({str(tmp_path / "log")!r}), environment=os.environ) as process:
    process.wait(600)
"""
    # A session of its own: Ctrl-C of a terminal would reach everything in the foreground.
    parent = subprocess.Popen([sys.executable, "-c", ours], start_new_session=True, stderr=subprocess.DEVNULL)
    daemon = wait_for(tmp_path / "daemon")
    assert is_alive(daemon)
    os.killpg(parent.pid, number)
    parent.wait(60)
    deadline = time.monotonic() + 600
    while is_alive(daemon):
        assert time.monotonic() < deadline, "the daemon lives on"
        time.sleep(0.01)
