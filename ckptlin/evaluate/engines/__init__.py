"""Engines that generate answers, one a file."""

from ckptlin.evaluate.engines.engine import DTYPES, Engine, EngineOptions, Generation, Request
from ckptlin.evaluate.engines.registry import ENGINES, default_engine, open_engine

__all__ = [
    "DTYPES",
    "ENGINES",
    "Engine",
    "EngineOptions",
    "Generation",
    "Request",
    "default_engine",
    "open_engine",
]
