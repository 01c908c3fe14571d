"""A program that runs beside this one: its output in a file, and its end when it is no longer wanted.

Whatever ends this process, also SIGKILL, ends the program and all that it started; see
`ckptlin.rl.verl.supervisor`.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptlin.interrupts import interrupts_held
from ckptlin.rl.verl import supervisor

__all__ = ["LoggedProcess"]

# Beyond the grace period, which is the supervisor's to keep.
_WAIT_S = 20.0


class LoggedProcess:
    """A program in a session of its own; a context manager, which ends it.

    Parameters
    ----------
    command : sequence of str
    log : Path
        File that standard output and error are appended to.
    environment : mapping of str to str
    grace_s : float
        Seconds that it is given to end by itself before it is killed.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str], grace_s: float = 10.0
    ) -> None:
        self._command = tuple(command)
        self._grace_s = grace_s
        self._log = log
        self._environment = dict(environment)
        self._begin = 0
        self._pipe: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with interrupts_held(), self._log.open("ab") as output:
            self._begin = output.tell()
            # Python's descriptors are not inherited, so that no other process keeps the writing end open.
            reading, self._pipe = os.pipe()
            program = [sys.executable, "-I", supervisor.__file__, str(reading), str(self._grace_s)]
            try:
                self._process = subprocess.Popen(
                    [*program, *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    pass_fds=(reading,),
                    start_new_session=True,
                )
            except BaseException:
                self._close()
                raise
            finally:
                os.close(reading)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C waits: GPUs that are still in use are what the next start would fail on.
        with interrupts_held():
            self._close()
            if self._process is not None:
                try:
                    self._process.wait(self._grace_s + _WAIT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def wait(self, timeout_s: float) -> int | None:
        """Wait so long for its end.

        Returns
        -------
        int or None
            Exit status, 128 + the signal's number if a signal ended it; None if it still runs.
        """
        if self._process is None:
            raise RuntimeError("the process has not been started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def last_lines(self, count: int) -> list[str]:
        """Return the end of what it has written since it was started, blank lines left out."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            lines = deque((line for line in file if line.strip()), count)
        return [line.decode(errors="replace").rstrip() for line in lines]
