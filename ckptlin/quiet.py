"""Silence for what transformers tells of itself while a model is loaded, run or saved."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["quiet_transformers"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' notes and progress bars, errors excepted; put everything back afterwards."""
    from transformers.utils import logging

    with ExitStack() as stack:
        stack.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
