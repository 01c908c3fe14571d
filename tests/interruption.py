"""Ctrl-C at a chosen point of a program: for tests that raise it at every one."""

import linecache
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, Self

__all__ = ["InterruptAt"]


class InterruptAt:
    """Send SIGINT to this process right before the n-th point of some modules is reached, in a block.

    A point is a line that is about to run, a function that is entered, or one that returns.  Those before
    `start` do not count, nor do ``with`` lines: tracers see one again when the block is left, before a lock is
    given back, where Python itself looks for no signal.

    Parameters
    ----------
    number : int
        From 1 on.
    modules : collection of modules
        Whose points count.

    Attributes
    ----------
    is_sent : bool
        False if there were fewer points.
    """

    def __init__(self, number: int, modules: Collection[ModuleType]) -> None:
        self._left = number
        self._files = {str(Path(module.__file__)) for module in modules}
        self._has_started = False
        self.is_sent = False

    def __enter__(self) -> Self:
        # A shell ignores SIGINT for what it runs in the background, and Python inherits that.
        self._handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._tracer = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._tracer)
        signal.signal(signal.SIGINT, self._handler)

    def start(self) -> None:
        """Count from now on."""
        self._has_started = True

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        # Python loses an exception in a generator expression that is closed unfinished.
        if frame.f_code.co_filename not in self._files or frame.f_code.co_name == "<genexpr>":
            return None
        if self._has_started and (event in ("call", "return") or (event == "line" and not _is_with(frame))):
            self._left -= 1
            if self._left == 0:
                self.is_sent = True
                signal.raise_signal(signal.SIGINT)
        return self._trace


def _is_with(frame: FrameType) -> bool:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")
