"""The demo's base model, which comes with the package."""

from pathlib import Path

__all__ = ["base_model"]


def base_model() -> Path:
    """Return the directory of the base model: a Qwen2 of 112,448 parameters that adds, with mistakes.

    `ckptlin.demo.make_base` made it; ``base.json`` beside the weights says how.
    """
    return Path(__file__).parent / "base"
