"""Times and peak memory of commands, with the page cache cold or warm."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Measured", "cat_cold", "ckptlin", "copy_cold", "drop_cache", "read_cold", "run_measured"]


@dataclass(frozen=True)
class Measured:
    """Wall time in seconds and peak resident memory in bytes of a command."""

    elapsed_s: float
    peak_bytes: int


def ckptlin(*arguments: str) -> list[str]:
    """Return the command line of ckptlin, of this environment."""
    return [str(Path(sys.executable).with_name("ckptlin")), *arguments]


def run_measured(command: list[str]) -> Measured:
    """Run a command; its peak is ``ru_maxrss``, as the kernel counts it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(elapsed_s, usage.ru_maxrss * unit)


def drop_cache(*paths: Path) -> None:
    """Write everything back and forget it: the files below these paths leave the page cache."""
    os.sync()
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                fd = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)


def cat_cold(run: Path) -> float:
    """Time ``cat *.safetensors > /dev/null`` over a run, cold, in seconds."""
    drop_cache(run)
    files = sorted(map(str, run.rglob("*.safetensors")))
    return run_measured(["sh", "-c", 'cat "$@" > /dev/null', "sh", *files]).elapsed_s


def read_cold(store: Path) -> float:
    """Time reading every file of a store once, cold, in seconds."""
    drop_cache(store)
    command = f"find {store}/weights -type f -print0 | xargs -0 cat > /dev/null"
    return run_measured(["sh", "-c", command]).elapsed_s


def copy_cold(checkpoint: Path, to: Path) -> float:
    """Time ``cp -r`` of a checkpoint and syncing it, cold, in seconds."""
    drop_cache(checkpoint)
    elapsed_s = run_measured(["sh", "-c", f"cp -r {checkpoint} {to} && sync {to}/*"]).elapsed_s
    shutil.rmtree(to)
    return elapsed_s
