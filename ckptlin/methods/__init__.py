"""Methods: rules that predict a checkpoint from the steps and the Gram matrices of its tensors."""

from ckptlin.methods.base import Method, MethodEntry, MethodSpec, Parameter
from ckptlin.methods.registry import (
    METHODS,
    all_methods,
    get_method,
    parse_method,
    parse_methods,
    split_methods,
)

__all__ = [
    "METHODS",
    "Method",
    "MethodEntry",
    "MethodSpec",
    "Parameter",
    "all_methods",
    "get_method",
    "parse_method",
    "parse_methods",
    "split_methods",
]
