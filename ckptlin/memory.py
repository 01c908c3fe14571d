"""Memory as a budget: what an operation will take is computed before it runs, and refused if it is too much."""

import os
import re
from dataclasses import dataclass

from ckptlin.errors import InputError, MemoryBudgetError

__all__ = ["MemoryPlan", "available_memory", "current_rss", "default_budget", "format_bytes", "parse_bytes"]

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
# Interpreter, numpy, numba, zarr, dask and kernels, measured after the first block of a fit: 230 MiB, and up to
# 310 in the process that is the first to compile the kernels of a dtype.
FIXED_BYTES = 330 << 20
_DEFAULT_BUDGET = 1 << 30


def parse_bytes(text: str) -> int:
    """Read a size such as ``512MB``, ``1.5GiB`` or ``1000000`` (bytes).

    Raises
    ------
    InputError
        If it is no size.

    Examples
    --------
    >>> parse_bytes("512MB"), parse_bytes("1.5 GiB"), parse_bytes("700k")
    (512000000, 1610612736, 700000)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise InputError(f"{text!r} is not a size; write for example 512MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(num_bytes: float) -> str:
    """Write a size for people, in binary units.

    Examples
    --------
    >>> format_bytes(512), format_bytes(1610612736), format_bytes(3 << 40)
    ('512 B', '1.5 GiB', '3.0 TiB')
    """
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        num_bytes /= 1024
        if num_bytes < 1024 or unit == "TiB":
            break
    return f"{num_bytes:.1f} {unit}"


def current_rss() -> int:
    """Resident memory of this process in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_memory() -> int | None:
    """Memory that this machine can still give, in bytes; None where it does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def default_budget() -> int:
    """Return the budget where none is given: 1 GiB, or half of what is available if that is less."""
    available = available_memory()
    return _DEFAULT_BUDGET if available is None else min(_DEFAULT_BUDGET, available // 2)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an operation will take at its peak.

    Attributes
    ----------
    operation : str
    worker_bytes : int
        Blocks in flight of one worker.
    num_workers : int
    fixed_bytes : int
        Everything else.
    """

    operation: str
    worker_bytes: int
    num_workers: int
    fixed_bytes: int = FIXED_BYTES

    @property
    def peak_bytes(self) -> int:
        """Projected peak of resident memory."""
        return self.fixed_bytes + self.num_workers * self.worker_bytes

    @classmethod
    def within(
        cls, budget: int, operation: str, worker_bytes: int, num_workers: int, *, extra_bytes: int = 0
    ) -> "MemoryPlan":
        """Plan with as many workers, up to ``num_workers``, as the budget (bytes) allows.

        ``extra_bytes`` is what the operation holds beside interpreter and blocks.

        Raises
        ------
        MemoryBudgetError
            If not even one worker fits.
        """
        fixed_bytes = FIXED_BYTES + extra_bytes
        affordable = (budget - fixed_bytes) // max(worker_bytes, 1)
        if affordable < 1:
            needed = fixed_bytes + worker_bytes
            raise MemoryBudgetError(
                f"{operation} needs at least {format_bytes(needed)} of memory with one worker, "
                f"more than the {format_bytes(budget)} allowed; give --memory {-(-needed // 10**6)}MB or more"
            )
        return cls(operation, worker_bytes, min(num_workers, affordable), fixed_bytes)
