"""Engines that compute log-probabilities, by name."""

import importlib.util

from ckptlin.errors import MissingExtraError, SelectionError
from ckptlin.outputs.scorers.scorer import Scorer, ScorerOptions

__all__ = ["SCORERS", "open_scorer"]

SCORERS = ("hf", "vllm")


def open_scorer(name: str, options: ScorerOptions) -> Scorer:
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
    if name not in SCORERS:
        raise SelectionError(f"there is no engine {name!r}; choose {' or '.join(SCORERS)}")
    if name == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError(
                'the engine vllm is not installed; pip install "ckptlin[vllm]" on a machine with a GPU, '
                "or choose "
                "--engine hf"
            )
        from ckptlin.outputs.scorers.vllm import VllmScorer

        return VllmScorer(options)
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f'the engine hf needs {package}; pip install "ckptlin[models]"')
    from ckptlin.outputs.scorers.hf import HfScorer

    return HfScorer(options)
