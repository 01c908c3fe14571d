"""Programs that a model wrote, run where they can do little harm.

A program runs in a process and a temporary directory of its own, under limits of memory, processor time, time,
processes and size of files, and is killed with all that it has started.  Where the kernel permits namespaces it
has no network, sees no other process, and can write nowhere but into its directory; `Sandbox.held` says what
was permitted.  It is no boundary against a determined attacker: the program reads what its user may read, and
meets the same kernel.  For code that is not trusted at all, run the whole in a container or a virtual machine.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ckptlin.errors import GradingError, InputError

__all__ = ["Limits", "Ran", "Sandbox"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
_PROGRAM = "main.py"
# Of users that no system gives out; one for each program that runs, so that a limit on processes is its own.
_FIRST_USER = 2_000_000_000
_SPARE_S = 30.0  # for the start of two interpreters on a busy machine, before the outer clock ends both


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of a program may take.

    Attributes
    ----------
    cpu_s : int
        Processor time of each of its processes.
    wall_s : float
        Time.
    memory_bytes : int
        Address space of each of its processes.
    processes : int
        Processes and threads at a time.
    file_bytes : int
        Size of each file that it writes, its output included.
    """

    cpu_s: int = 6
    wall_s: float = 24.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name in ("cpu_s", "wall_s", "memory_bytes", "processes", "file_bytes"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the sandbox is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended.

    Attributes
    ----------
    outcome : str
        ``ok`` (exit status 0), ``error`` (another, or a signal), ``timed out`` or ``out of memory``.
    returncode : int
        Exit status, or the negative number of the signal that ended it.
    stdout, stderr : str
        What it wrote; of stderr the end.
    files : mapping of str to bytes
        Of those that were asked for, what it left.
    """

    outcome: Literal["ok", "error", "timed out", "out of memory"]
    returncode: int
    stdout: str
    stderr: str
    files: Mapping[str, bytes]


class Sandbox:
    """Runs Python programs; may be used by several threads at once.

    Parameters
    ----------
    limits : Limits, optional
    namespaces : bool
        Whether to ask the kernel for namespaces; without, the limits hold alone, and the socket module is
        blocked.
    """

    def __init__(self, limits: Limits | None = None, *, namespaces: bool = True) -> None:
        self.limits = limits or Limits()
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._users: set[int] = set()
        self._held: dict[str, str] = {}

    @property
    def held(self) -> dict[str, str]:
        """How programs are held, once one has run: ``network``, ``files``, ``processes`` and ``user``."""
        return dict(self._held)

    def run(
        self,
        program: str,
        *,
        stdin: str = "",
        files: Mapping[str, str] | None = None,
        take: tuple[str, ...] = (),
    ) -> Ran:
        """Run a program to its end, or to its limits.

        Parameters
        ----------
        program : str
            Python, run as ``main.py``.
        stdin : str
        files : mapping of str to str, optional
            Other files in its directory.
        take : tuple of str
            Names of files to return.

        Raises
        ------
        GradingError
            If no process can be started; whatever the program does is no error.
        """
        with tempfile.TemporaryDirectory(prefix="ckptlin-sandbox-", ignore_cleanup_errors=True) as outer:
            directory = Path(outer, "program")
            directory.mkdir(mode=0o700)
            os.chmod(outer, 0o711)  # another user passes through, and finds its own directory alone
            for name, content in {**(files or {}), _PROGRAM: program}.items():
                (directory / name).write_text(content, encoding="utf-8", errors="surrogatepass")
            given = Path(outer, "stdin")
            given.write_text(stdin, encoding="utf-8", errors="surrogatepass")
            written = {name: Path(outer, name) for name in ("stdout", "stderr")}
            with (
                given.open("rb") as source,
                written["stdout"].open("wb") as output,
                written["stderr"].open("wb") as errors,
            ):
                told = self._launch(directory, source, output, errors)
            stdout = written["stdout"].read_bytes().decode(errors="replace")
            stderr = written["stderr"].read_bytes()[-4096:].decode(errors="replace")
            left = {name: _content(directory / name, self.limits.file_bytes) for name in take}
        return Ran(
            _outcome(told, stderr),
            told["returncode"],
            stdout,
            stderr,
            {name: content for name, content in left.items() if content is not None},
        )

    def _launch(
        self, directory: Path, source: IO[bytes], output: IO[bytes], errors: IO[bytes]
    ) -> dict[str, Any]:
        reading, writing = os.pipe()
        user = self._take_user()
        try:
            config = {
                "status": writing,
                "directory": str(directory),
                "program": _PROGRAM,
                "namespaces": self._namespaces,
                "user": user,
                "read_all": not _open_to_others(
                    Path(sys.executable).resolve(), Path(sys.prefix), Path(os.__file__)
                ),
                "cpu_s": self.limits.cpu_s,
                "wall_s": self.limits.wall_s,
                "memory_bytes": self.limits.memory_bytes,
                "processes": self.limits.processes,
                "file_bytes": self.limits.file_bytes,
            }
            process = subprocess.Popen(
                [sys.executable, "-P", "-S", str(_CHILD), json.dumps(config)],
                stdin=source,
                stdout=output,
                stderr=errors,
                pass_fds=[writing],
                env={"PATH": os.defpath},
                start_new_session=True,
            )
            os.close(writing)
            writing = -1
            try:
                process.wait(self.limits.wall_s + _SPARE_S)
            except subprocess.TimeoutExpired:
                pass
            finally:
                process.kill()  # its child dies with it
                process.wait()
            return self._told(reading, process.returncode)
        finally:
            for descriptor in (reading, writing):
                if descriptor >= 0:
                    os.close(descriptor)
            if user is not None:
                with self._lock:
                    self._users.discard(user)

    def _told(self, reading: int, returncode: int) -> dict[str, Any]:
        os.set_blocking(reading, False)
        try:
            text = os.read(reading, 65536)
        except BlockingIOError:
            text = b""
        told: dict[str, Any] = {}
        for line in text.splitlines():
            told |= json.loads(line)
        if "failed" in told or "held" not in told:
            raise GradingError(
                f"the sandbox could not start a program ({told.get('failed') or f'exit status {returncode}'}); "
                "check that python may run and start processes here"
            )
        with self._lock:
            self._held = told["held"]
        return {"returncode": -9, "timed_out": True} | told

    def _take_user(self) -> int | None:
        """Return a user for the program, if we are root."""
        if os.getuid() != 0:
            return None
        with self._lock:
            first = _FIRST_USER + os.getpid() % 1_000_000 * 100
            user = next(number for number in range(first, first + 100) if number not in self._users)
            self._users.add(user)
            return user


def _outcome(told: Mapping[str, Any], stderr: str) -> Literal["ok", "error", "timed out", "out of memory"]:
    # SIGKILL is what the kernel sends at the hard limit of processor time, the first process of a namespace not
    # hearing SIGXCPU; or the system, when its memory is used up.
    if told["timed_out"] or told["returncode"] in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timed out"
    if told["returncode"] == 0:
        return "ok"
    last = stderr.rstrip().rpartition("\n")[2]
    return "out of memory" if last.startswith("MemoryError") else "error"


def _content(path: Path, most: int) -> bytes | None:
    """Read a file that a program wrote, and nothing that it only pretends to be one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _open_to_others(*paths: Path) -> bool:
    """Tell whether any user may come to these paths."""
    return all(
        parent.stat().st_mode & stat.S_IXOTH
        for path in paths
        for parent in (path, *path.parents)
        if parent.is_dir()
    )
