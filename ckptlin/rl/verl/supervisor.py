"""Runs a program and ends all that it started: when it ends itself, and when whoever asked for it is gone.

Ray starts daemons, which survive their driver for a while, or for good if it is killed; a second launch would
then meet them on the same GPUs.  This small process stands between: the kernel makes it the parent of every
descendant whose own parent died, so that it finds them all.  It learns that its parent is gone, by SIGKILL too,
from the end of a pipe.

A program, run by its path and with nothing but the standard library: ``supervisor.py FD GRACE_S COMMAND...``.
Linux alone.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

# From prctl(2).
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def _main() -> int:
    pipe, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The end of the pipe says all that a signal could.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_restore_signals)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        return 127
    ended = os.pidfd_open(child.pid)
    ready, _, _ = select.select([pipe, ended], [], [])
    status = None
    if ended in ready:
        code = child.wait()
        status = code if code >= 0 else 128 - code
    _end_descendants(grace_s)
    return 128 + signal.SIGTERM if status is None else status


def _restore_signals() -> None:
    # What is ignored here would be ignored there.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _end_descendants(grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while alive := _descendants():
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in alive:
            if number == signal.SIGKILL or pid not in told:
                told.add(pid)
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        time.sleep(_POLL_S)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _descendants() -> list[int]:
    """Return the living processes below this one."""
    _reap()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += level
    return found


if __name__ == "__main__":
    sys.exit(_main())
