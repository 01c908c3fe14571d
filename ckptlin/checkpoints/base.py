"""What every checkpoint reader offers, whatever the layout on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ckptlin.checkpoints.locations import Location
from ckptlin.trajectory import TensorSpec

__all__ = ["Checkpoint", "WeightFile"]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights of a checkpoint.

    Attributes
    ----------
    name : str
        File name inside the checkpoint's directory.
    num_bytes : int
        Size of the file.
    mtime_ns : int
        Time of last modification, nanoseconds since the epoch; of a file at a URL see `UrlStat`.
    header : bytes
        The JSON header exactly as it lies in the file (padding included, the 8-byte length not), so that
        the file can be written again byte for byte.
    """

    name: str
    num_bytes: int
    mtime_ns: int
    header: bytes


class Checkpoint(Protocol):
    """One saved model: a read-only view of its files that holds no weights in memory."""

    @property
    def path(self) -> Location:
        """The directory (or single file) that holds the weights."""
        ...

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files of weights, sorted by name."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the order of files and, inside a file, of offsets."""
        ...

    @property
    def file_of(self) -> Mapping[str, str]:
        """Name of the file that holds each tensor."""
        ...

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that stand for another tensor of the checkpoint, and have no bytes of their own."""
        ...

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The parsed ``config.json``, None if there is none."""
        ...

    @property
    def sidecars(self) -> Mapping[str, Location]:
        """Files that make the checkpoint complete, by name: configuration, tokenizer, chat template, index."""
        ...

    def read_into(self, tensor: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill ``out`` with the tensor's elements from ``start`` on (flat, C order), touching only their bytes.

        ``out`` is 1-d, C-contiguous, of the tensor's dtype or of its bits dtype.
        """
        ...

    def prefetch(self, tensor: str, start: int, num_params: int) -> None:
        """Hint that these elements are read soon; a reader that can do nothing about it does nothing."""
        ...

    def memmap(self, tensor: str) -> np.ndarray[Any, Any]:
        """Return the tensor as a read-only memory map of its shape and dtype."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...
