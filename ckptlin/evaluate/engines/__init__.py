"""Engines that generate answers, one a file."""

from ckptlin.evaluate.engines.engine import (
    ENGINES,
    Engine,
    EngineOptions,
    Generation,
    Request,
    default_engine,
    open_engine,
)

__all__ = ["ENGINES", "Engine", "EngineOptions", "Generation", "Request", "default_engine", "open_engine"]
