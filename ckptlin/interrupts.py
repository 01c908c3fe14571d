"""Ctrl-C while something is cleared away: one is answered, and those after it wait until that is done.

Python raises KeyboardInterrupt in the main thread between any two instructions, also inside the clean-up that
a first one, or an error, has begun; what that would have removed then stays for good, and threads that it would
have waited for go on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

__all__ = ["OneInterrupt", "interrupts_held"]


class OneInterrupt:
    """Let one Ctrl-C through, and hold those after it until the block is left; a context manager.

    A signal that was held is delivered at the end, unless a KeyboardInterrupt is on its way already.  Does
    nothing outside the main thread, where Python raises none, and where the program answers SIGINT by other
    means than a function of Python.  Blocks may be nested.
    """

    def __init__(self) -> None:
        self._former: signal._HANDLER = None
        self._is_holding = False
        self._is_noted = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Known before it is replaced: a signal may come between the two.
            former = signal.getsignal(signal.SIGINT)
            if callable(former):
                self._former = former
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._former)
        if self._is_noted and not isinstance(error, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def hold(self) -> None:
        """Hold the first one too from now on: an error has occurred, and its clean-up begins."""
        self._is_holding = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._is_holding:
            self._is_noted = True
        elif callable(self._former):
            self._is_holding = True
            self._former(signum, frame)
            self._is_holding = False  # it was answered without an exception: nothing is being cleared away


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold every Ctrl-C until the block is left: for what takes moments and must not be done by half."""
    with OneInterrupt() as interrupts:
        interrupts.hold()
        yield
