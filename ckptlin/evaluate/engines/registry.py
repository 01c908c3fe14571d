"""Which engines there are, and how one is opened."""

import importlib.util

from ckptlin.errors import MissingExtraError, SelectionError
from ckptlin.evaluate.engines.engine import Engine, EngineOptions

__all__ = ["ENGINES", "default_engine", "open_engine"]

ENGINES = ("vllm", "hf")


def default_engine() -> str:
    """Return ``vllm`` where it is installed, else ``hf``."""
    return "vllm" if importlib.util.find_spec("vllm") is not None else "hf"


def open_engine(name: str, options: EngineOptions) -> Engine:
    """Open an engine; use it in a ``with`` statement.

    Raises
    ------
    SelectionError
        If there is no engine of that name.
    MissingExtraError
        If its packages are not installed.
    InputError
        If an option is not one of this engine's.
    """
    if name not in ENGINES:
        raise SelectionError(f"there is no engine {name!r}; choose {' or '.join(ENGINES)}")
    if name == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError(
                'the engine vllm is not installed; pip install "ckptlin[vllm]" on a machine with a GPU, see '
                "docs/engines.md for one without, or choose --engine hf"
            )
        from ckptlin.evaluate.engines.vllm import VllmEngine

        return VllmEngine(options)
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f'the engine hf needs {package}; pip install "ckptlin[models]"')
    from ckptlin.evaluate.engines.hf import HfEngine

    return HfEngine(options)
