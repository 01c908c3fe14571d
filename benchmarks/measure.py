"""Times and peak memory of commands, with the page cache cold or warm.

The peak is the kernel's ``ru_maxrss``. A process inherits it from what called exec, and ``subprocess`` calls
exec on the memory of the benchmark itself: a child would then never show less than the benchmark's own peak.
So each command is started by a bare interpreter of about 10 MiB, which takes the time and the peak and hands
them back.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Measured",
    "cat_cold",
    "ckptlin",
    "copy_cold",
    "core_commands",
    "drop_cache",
    "read_cold",
    "run_measured",
    "sync_files",
    "weight_files",
]

# If memory runs out, the command is what the kernel should end, and nothing else on the machine.
_LAUNCHER = """
import json, os, sys, time
fd = int(sys.argv[1])
os.set_inheritable(fd, False)
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
except OSError:
    pass
started = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
elapsed_s = time.perf_counter() - started
os.write(fd, json.dumps([elapsed_s, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]).encode())
"""
_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Measured:
    """Wall time in seconds and peak resident memory in bytes of a command.

    Attributes
    ----------
    exit_status : int
        Negative: the signal that ended it.
    stdout, error : str
        What it printed, and the last line of what it complained of.
    """

    elapsed_s: float
    peak_bytes: int
    exit_status: int = 0
    stdout: str = ""
    error: str = ""

    @property
    def is_memory_failure(self) -> bool:
        """Whether the command failed for want of memory."""
        killed = self.exit_status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return killed or "MemoryError" in self.error or "alloc" in self.error


def ckptlin(*arguments: str) -> list[str]:
    """Return the command line of ckptlin, of this environment."""
    return [str(Path(sys.executable).with_name("ckptlin")), *arguments]


def run_measured(command: Sequence[str], *, sync: Path | None = None, check: bool = True) -> Measured:
    """Run a command; the time includes writing what lies below ``sync`` back to the disk.

    Raises
    ------
    SystemExit
        If it fails and ``check`` is set.
    """
    read_end, write_end = os.pipe()
    with (
        open(read_end, "rb") as report,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(write_end), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        try:
            content = report.read()
            process.wait()
        except BaseException:
            # Launcher and command are a session of their own, which Ctrl-C doesn't reach.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
        error = lines[-1].strip() if lines else ""
        if not content:
            raise SystemExit(f"{' '.join(command)} could not be started: {error}")
        elapsed_s, peak, exit_status = json.loads(content)
        if exit_status and check:
            raise SystemExit(f"{' '.join(command)} failed with exit status {exit_status}: {error}")
        if sync is not None:
            elapsed_s += sync_files(sync)
        return Measured(elapsed_s, peak * _UNIT, exit_status, out.read(), error if exit_status else "")


def weight_files(run: Path) -> list[str]:
    """Return the files of weights below a run, whose checkpoints may be links."""
    return sorted(str(file) for checkpoint in run.iterdir() for file in checkpoint.glob("*.safetensors"))


def sync_files(path: Path) -> float:
    """Time writing every file below a path back to the disk, in seconds."""
    return run_measured(["sh", "-c", f"find '{path}' -type f -exec sync {{}} +"]).elapsed_s


def core_commands(run: str, store: str, out: str) -> dict[str, list[str]]:
    """Return the arguments of the core path's commands, by name, in an order in which they can run."""
    predict = ["extrapolate", store, "--step", "2000", "--method", "ols", "--out", out, "--overwrite"]
    return {
        "ingest": ["ingest", run, store],
        "fit": ["fit", store],
        "fit of the run": ["fit", run],
        "extrapolate": predict,
        "extrapolate, gated": [*predict, "--min-r2", "0.5"],
    }


def drop_cache(*paths: Path) -> None:
    """Write everything back and forget it: the files below these paths leave the page cache."""
    os.sync()
    for path in paths:
        for directory, _, names in os.walk(path, followlinks=True):
            for name in names:
                fd = os.open(os.path.join(directory, name), os.O_RDONLY)
                try:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)


def cat_cold(run: Path) -> float:
    """Time ``cat *.safetensors > /dev/null`` over a run, cold, in seconds."""
    drop_cache(run)
    return run_measured(["sh", "-c", 'cat "$@" > /dev/null', "sh", *weight_files(run)]).elapsed_s


def read_cold(store: Path) -> float:
    """Time reading every file of a store's weights once, cold, in seconds."""
    drop_cache(store)
    command = f"find '{store}/weights' -type f -print0 | xargs -0 cat > /dev/null"
    return run_measured(["sh", "-c", command]).elapsed_s


def copy_cold(checkpoint: Path, to: Path) -> float:
    """Time ``cp -r`` of a checkpoint and syncing it, cold, in seconds."""
    drop_cache(checkpoint)
    elapsed_s = run_measured(["cp", "-r", str(checkpoint), str(to)], sync=to).elapsed_s
    shutil.rmtree(to)
    return elapsed_s
