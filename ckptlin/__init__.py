"""ckptlin: streaming analysis and extrapolation of training checkpoints."""

from ckptlin._version import __version__

__all__ = ["__version__"]
