"""Where hidden states lie: what enters a model's first block, leaves each block, and leaves the last norm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptlin.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["blocks_of", "layer_names", "layers_observed"]


def layer_names(num_blocks: int) -> tuple[str, ...]:
    """Name the layers of a model.

    Examples
    --------
    >>> layer_names(2)
    ('embedding', 'block 0', 'block 1', 'norm')
    """
    return ("embedding", *(f"block {number}" for number in range(num_blocks)), "norm")


def blocks_of(model: Any) -> Any:
    """Return the list of a model's blocks, a ``ModuleList``.

    Raises
    ------
    InputError
        If the model has none of the length that its configuration tells.
    """
    import torch

    expected = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == expected:
            return module
    raise InputError(f"no list of {expected} blocks was found in a {type(model).__name__}")


@contextmanager
def layers_observed(model: Any, take: Callable[[int, "torch.Tensor"], None]) -> Iterator[Any]:
    """Give the base model; while it computes, ``take`` gets every layer's number and its states, one at a time.

    States have the shape (batch, position, hidden); nothing is kept.
    """
    blocks = blocks_of(model)

    def entering(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        take(0, arguments[0] if arguments else named["hidden_states"])

    def leaving(number: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            take(number, output[0] if isinstance(output, tuple) else output)

        return hook

    def ending(module: Any, arguments: Any, output: Any) -> None:
        take(len(blocks) + 1, output.last_hidden_state)

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(leaving(number)) for number, block in enumerate(blocks, start=1)]
    handles.append(model.base_model.register_forward_hook(ending))
    try:
        yield model.base_model
    finally:
        for handle in handles:
            handle.remove()
