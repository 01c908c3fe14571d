"""The device that torch computes on."""

from typing import TYPE_CHECKING

from ckptlin.errors import InputError
from ckptlin.evaluate.engines.model import first_line

if TYPE_CHECKING:
    import torch

__all__ = ["describe_device", "free_memory", "open_device"]


def open_device(name: str | None) -> "torch.device":
    """Return a device by its name, by default the accelerator if there is one; InputError if there is none."""
    import torch

    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def describe_device(device: "torch.device") -> str:
    """Return what results depend on: the name of a GPU, ``cpu``, ..."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def free_memory(device: "torch.device") -> None:
    """Give memory back that torch holds for a device, and nobody uses."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
