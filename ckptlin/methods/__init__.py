"""Methods: rules that predict a checkpoint from the steps."""

from ckptlin.methods.base import Method
from ckptlin.methods.registry import METHODS, MethodEntry, get_method

__all__ = ["METHODS", "Method", "MethodEntry", "get_method"]
