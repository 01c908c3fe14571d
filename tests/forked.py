"""Calls of ckptlin in processes of their own, which can be killed at any moment.

Starting Python and importing everything takes a second; so one process that has done it forks a child for each
call.  A child counts its operations on files (creations, writes, renames, removals, syncs) and can be told to
be killed, or to find the disk full, at the n-th.
"""

import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

__all__ = ["Forked", "Outcome"]

_EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir"})
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Outcome(NamedTuple):
    """How a call ended.

    Attributes
    ----------
    signal : int
        What killed the process, 0 if nothing did.
    value : Any
        What the returned object's ``to_dict`` gives.
    error : str
        Name of the error's class, '' if there was none.
    message : str
    num_operations : int
        Operations on files.
    peak_bytes : int
        Largest resident memory.
    """

    signal: int
    value: Any = None
    error: str = ""
    message: str = ""
    num_operations: int = 0
    peak_bytes: int = 0


class Forked:
    """Forks a child for each call; one at a time."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # A fork of a process with threads is not to be trusted.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def start(
        self, function: str, *args: Any, die_at: int = 0, full_at: int = 0, sync: bool = False, **kwargs: Any
    ) -> int:
        """Call ``module:name`` in a child, and return its process id without waiting for the end."""
        request = {
            "function": function,
            "args": [os.fspath(a) if isinstance(a, Path) else a for a in args],
            "kwargs": kwargs,
            "die_at": die_at,
            "full_at": full_at,
            "sync": sync,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        return int(self._server.stdout.readline())

    def finish(self) -> Outcome:
        """Wait for the end of the call."""
        return Outcome(**json.loads(self._server.stdout.readline()))

    def call(self, function: str, *args: Any, **kwargs: Any) -> Outcome:
        """Call a function in a child and wait for its end."""
        self.start(function, *args, **kwargs)
        return self.finish()


class _Counter:
    """Counts operations on files, and ends the process or fails at the n-th."""

    def __init__(self, die_at: int, full_at: int, *, sync: bool) -> None:
        self.count = 0
        self._die_at, self._full_at = die_at, full_at
        write, fsync = os.write, os.fsync

        def counted_write(fd: int, data: bytes) -> int:
            self.step()
            return write(fd, data)

        def counted_fsync(fd: int) -> None:
            self.step()
            if sync:
                fsync(fd)

        os.write, os.fsync = counted_write, counted_fsync
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & _FOR_WRITING):
            self.step()

    def step(self) -> None:
        self.count += 1
        if self.count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self._full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _run(request: dict[str, Any], result_fd: int) -> None:
    module, name = request["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    counter = _Counter(request["die_at"], request["full_at"], sync=request["sync"])
    outcome: dict[str, Any] = {"signal": 0}
    try:
        value = function(*request["args"], **request["kwargs"])
        outcome["value"] = value.to_dict() if hasattr(value, "to_dict") else value
    except Exception as error:  # noqa: BLE001 (whatever it is, the test is told)
        outcome |= {"error": type(error).__name__, "message": str(error)}
    outcome["num_operations"] = counter.count
    outcome["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(result_fd, "w") as file:
        json.dump(outcome, file)


def _warm_up() -> None:
    """Import and compile what an ingest needs, and a run's directory, so that no child does it again."""
    import numpy as np
    import safetensors.numpy

    import ckptlin.rl.run_directory  # noqa: F401
    from ckptlin.ingest import ingest
    from ckptlin.verify import verify

    widths = {f"w{i}": np.zeros(2, f"u{i}") for i in (1, 2, 4, 8)}
    with tempfile.TemporaryDirectory() as directory:
        for step in (1, 2):
            checkpoint = Path(directory, "run", f"checkpoint-{step}")
            checkpoint.mkdir(parents=True)
            safetensors.numpy.save_file(widths, checkpoint / "model.safetensors")
            verify(ingest(checkpoint, Path(directory, "store"), num_workers=1).store)


def _serve() -> None:
    _warm_up()
    child = None
    for line in sys.stdin:
        if child is not None:
            os.waitpid(child, 0)
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            try:
                _run(json.loads(line), send)
            finally:
                os._exit(0)
        os.close(send)
        print(child, flush=True)  # noqa: T201
        # Its process id stays its own, and may be killed, until the next call.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with open(receive) as file:
            result = file.read()
        print(result or json.dumps({"signal": ended.si_status}), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
