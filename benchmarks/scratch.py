"""Where the benchmarks write: one directory, gone at the end whatever happens, with one run in it at a time."""

import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

from benchmarks.measure import ckptlin, core_commands, run_measured
from benchmarks.synthetic import MODELS, Architecture, make_run, tensor_specs

__all__ = ["Scratch", "num_params", "scaled"]

_RESERVE_BYTES = 2 << 30
# Run, store, maps and two checkpoints, as a multiple of the run.
_SPACE = 1.6


def num_params(arch: Architecture) -> int:
    """Number of parameters of a model."""
    return sum(spec.num_params for spec in tensor_specs(arch))


def scaled(model: str, scale: float) -> Architecture:
    """Return a model, or a share of one."""
    return MODELS[model] if scale == 1.0 else MODELS[model].scaled(scale)


@dataclass(eq=False)
class Scratch:
    """A directory for runs, stores and checkpoints, as a context manager."""

    parent: Path | None = None
    root: Path = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)

    def __enter__(self) -> "Scratch":
        # Ended by a signal, Python would not clean up.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        if self.parent is not None:
            self.parent.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(prefix="ckptlin-bench-", dir=self.parent))
        self._free_bytes = shutil.disk_usage(self.root).free - _RESERVE_BYTES
        self._made: object = None
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def largest(self, model: str, scale: float, checkpoints: int = 14, space: float = _SPACE) -> Architecture:
        """Return the largest share of a model, up to ``scale``, whose run and store fit on the disk."""
        asked = arch = scaled(model, scale)
        while num_params(arch) * 2 * checkpoints * space > self._free_bytes and scale > 1e-3:
            scale *= 0.95
            arch = scaled(model, scale)
        if arch != asked:
            self.notes.append(
                f"the disk has room for {checkpoints} checkpoints of {num_params(arch):,} parameters, "
                f"not of {num_params(asked):,}"
            )
        return arch

    def run(self, arch: Architecture, *, checkpoints: int = 14, changed: float = 0.2) -> Path:
        """Return a synthetic run; what was made before goes, unless it is the same."""
        key = (arch, checkpoints, changed)
        path = self.root / "run"
        if self._made != key:
            self.clear()
            make_run(path, arch, checkpoints=checkpoints, changed=changed)
            self._made = key
        return path

    def clear(self) -> None:
        """Remove everything."""
        self._made = None
        for path in self.root.iterdir():
            shutil.rmtree(path)

    @cached_property
    def start_s(self) -> dict[str, float]:
        """What starting alone takes each command, warm, in seconds: the median of three on a tiny run."""
        self.compile_kernels()
        rounds = [self.compile_kernels() for _ in range(3)]
        return {name: median(times[name] for times in rounds) for name in rounds[0]}

    def compile_kernels(self) -> dict[str, float]:
        """Run each command on a run of a few thousand weights, so that none compiles later; return times."""
        with tempfile.TemporaryDirectory(dir=self.parent, prefix="ckptlin-bench-") as name:
            run, store, out = (str(Path(name) / part) for part in ("run", "store", "out"))
            make_run(Path(run), Architecture(16, 1, 2, 1, 32, 64), checkpoints=4)
            commands = core_commands(run, store, out)
            return {key: run_measured(ckptlin(*arguments)).elapsed_s for key, arguments in commands.items()}
