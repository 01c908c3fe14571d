"""TRL as the trainer loads it: with vLLM only where vLLM writes the rollouts."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["load_trl"]

_VLLM_USER = "trl.generation.vllm_generation"


def load_trl(*, with_vllm: bool) -> None:
    """Import TRL, unless that was done before.

    Where vLLM is installed, TRL imports it whether rollouts need it or not, and warns if it does not know its
    version.  That is 11.5 s of a start instead of 7 (two cores of an AMD EPYC).

    Parameters
    ----------
    with_vllm : bool
        Whether vLLM writes the rollouts.
    """
    loaded = sys.modules.get(_VLLM_USER)
    if loaded is not None:
        if with_vllm and not hasattr(loaded, "LLM"):
            importlib.reload(loaded)
    elif with_vllm or "vllm" in sys.modules:
        importlib.import_module(_VLLM_USER)
    else:
        with _hidden("vllm"):
            importlib.import_module(_VLLM_USER)


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let a package, which is not loaded, seem not to be installed."""
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
