"""Processes that answer requests, and are killed when they do not."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ckptlin.errors import GradingError

__all__ = ["Failure", "WorkerPool", "available_processors"]

_START_S = 300.0  # to load its libraries, on a machine that does much else


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer: the process was killed at the limit of time, or died."""

    kind: Literal["timed out", "died"]


def available_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Some processes of one program, each with one request at a time.

    They are started when they are needed, live until the pool is closed, and are replaced when they die.

    Parameters
    ----------
    module : str
        The program, for ``python -m``.  It reads a JSON value from each line of stdin and writes one to stdout;
        first, when it is ready, an object with ``ready``.  It limits its own processor time by ``RLIMIT_CPU``.
    arguments : sequence of str
    num_workers : int
    wall_s : float
        Time for one request after which a process is killed that the kernel has not ended yet.
    """

    def __init__(self, module: str, arguments: Sequence[str], *, num_workers: int, wall_s: float) -> None:
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._workers = [_Worker(self._command, wall_s) for _ in range(num_workers)]
        self._lock = threading.Lock()

    def ask(self, requests: Sequence[Any]) -> list[Any]:
        """Return the answer to each request, or its `Failure`.

        Raises
        ------
        GradingError
            If a process cannot be started.
        """
        answers: list[Any] = [None] * len(requests)
        errors: list[BaseException] = []
        todo = iter(enumerate(requests))
        turn = threading.Lock()

        def serve(worker: _Worker) -> None:
            while not errors:
                with turn:
                    found = next(todo, None)
                if found is None:
                    return
                try:
                    answers[found[0]] = worker.ask(found[1])
                except (GradingError, OSError) as error:
                    errors.append(error)

        with self._lock:
            threads = [
                threading.Thread(target=serve, args=(worker,), daemon=True)
                for worker in self._workers[: len(requests)]
            ]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as error:  # Ctrl-C
                errors.append(error)
                self.close()
                raise
        if errors:
            raise errors[0]
        return answers

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()


class _Worker:
    def __init__(self, command: Sequence[str], wall_s: float) -> None:
        self._command = command
        self._wall_s = wall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, request: Any) -> Any:
        line = json.dumps(request).encode() + b"\n"
        # One that waited may have been killed by others since, for its memory; that is no fault of the request.
        for _ in range(2):
            process = self._started()
            try:
                assert process.stdin is not None  # noqa: S101 (it is a pipe)
                process.stdin.write(line)
                process.stdin.flush()
                break
            except BrokenPipeError:
                self.stop()
        else:
            return Failure("died")
        answer = self._read_line(process, self._wall_s)
        if isinstance(answer, Failure):
            self.stop()
            return answer
        return json.loads(answer)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # of what it was sent and did not read
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._rest = b""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us; we end them
        )
        self._process = process
        if isinstance(self._read_line(process, _START_S), Failure):
            self.stop()
            raise GradingError(
                f"the process that grades did not start; `{' '.join(self._command)}` in a shell shows why"
            )
        return process

    def _read_line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | Failure:
        assert process.stdout is not None  # noqa: S101 (it is a pipe)
        descriptor = process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return Failure("timed out")
            read = os.read(descriptor, 65536)
            if not read:
                process.wait()
                return Failure("timed out" if _used_up(process.returncode) else "died")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _used_up(returncode: int) -> bool:
    """Tell whether the kernel ended a process for its processor time."""
    return returncode == -signal.SIGXCPU


def _environment() -> Mapping[str, str]:
    """Return the environment in which a process finds what this one would import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
