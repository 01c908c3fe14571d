"""Two models that compute a batch in step: each linear layer's input in one meets its input in the other.

Model A runs in a thread, and at each linear layer waits until B has taken what A brought to the layer before:
the inputs of a few layers are in memory at a time, and not those of all.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ckptlin.errors import CkptlinError, InputError
from ckptlin.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

__all__ = ["in_lockstep"]

# (name, x_A, y_A, x_B, y_B)
Meet = Callable[[str, "torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], None]


class _LeftError(CkptlinError):
    """The other model is not coming any more."""


def in_lockstep(
    first: tuple[Any, Mapping[str, Any]], second: tuple[Any, Mapping[str, Any]], ids: "torch.Tensor", meet: Meet
) -> tuple[Any, Any]:
    """Run two base models over a batch; ``meet`` gets inputs and outputs of each linear layer of both.

    Parameters
    ----------
    first, second : (module, mapping of str to module)
        The model, and its linear layers by name, the same names in both.
    ids : torch.Tensor
        ``(batch, position) int64``.
    meet : callable
        Of a layer's name, and its input and output in the first and in the second model.

    Returns
    -------
    (Any, Any)
        What the models return.

    Raises
    ------
    InputError
        If the models come to their layers in different orders, as routed experts do.
    """
    import torch

    handed: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()
    ends: list[Any] = []

    def hand(item: Any) -> None:
        while not stop.is_set():
            try:
                handed.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
        raise _LeftError

    def run_first() -> None:
        try:
            with torch.inference_mode(), ExitStack() as hooks:
                for name, module in first[1].items():
                    _hook(hooks, name, module, lambda *met: hand(met))
                ends.append(first[0](input_ids=ids, use_cache=False))
            hand(None)
        except _LeftError:
            return
        except BaseException as error:  # noqa: BLE001 (raised again where the other model waits)
            if not stop.is_set():
                hand(error)

    def arrive(name: str, x: "torch.Tensor", y: "torch.Tensor") -> None:
        item = handed.get()
        if isinstance(item, BaseException):
            raise item
        if item is None or item[0] != name:
            other = "its end" if item is None else item[0]
            raise InputError(f"the models part: one comes to {name} where the other comes to {other}")
        meet(name, item[1], item[2], x, y)

    thread = threading.Thread(target=run_first, name="ckptlin-lockstep", daemon=True)
    with quiet_transformers():
        thread.start()
        try:
            with torch.inference_mode(), ExitStack() as hooks:
                for name, module in second[1].items():
                    _hook(hooks, name, module, arrive)
                end = second[0](input_ids=ids, use_cache=False)
            item = handed.get()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                raise InputError(f"the models part: one comes to {item[0]} where the other ends")
        finally:
            stop.set()
            thread.join()
    return ends[0], end


def _hook(
    hooks: ExitStack, name: str, module: Any, take: Callable[[str, "torch.Tensor", "torch.Tensor"], None]
) -> None:
    def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        take(name, arguments[0] if arguments else named["input"], output)

    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
