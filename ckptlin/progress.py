"""How operations tell their progress, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["NO_PROGRESS", "Progress"]


class Progress(Protocol):
    """Shows how far an operation is."""

    def phase(self, title: str, num_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a phase; call what it yields with the number of bytes that are done, from any thread."""
        ...

    def note(self, message: str) -> None:
        """Tell the user something that matters: a warning, or what was skipped."""
        ...


class _Silent:
    @contextmanager
    def phase(self, title: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
        yield lambda num_bytes: None

    def note(self, message: str) -> None:
        pass


NO_PROGRESS: Progress = _Silent()
