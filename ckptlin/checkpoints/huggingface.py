"""Checkpoints as transformers saves them: safetensors files, ``config.json`` and a tokenizer.

Opening one reads the headers of its files and the small JSON files; weights are read by whoever asks for
them, straight from the file into the caller's array.  Which files are the model is decided in
`model_files`.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.checkpoints.base import WeightFile
from ckptlin.checkpoints.locations import Location, UrlPath, location_of
from ckptlin.checkpoints.messages import name_some
from ckptlin.checkpoints.model_files import INDEX_NAME, find_model_files, read_json
from ckptlin.checkpoints.open_files import OpenFiles, read_fully
from ckptlin.checkpoints.safetensors_header import SafetensorsHeader, read_header
from ckptlin.checkpoints.sidecars import find_sidecars
from ckptlin.checkpoints.tied import find_tied
from ckptlin.errors import IncompleteCheckpointError, InputError, MalformedCheckpointError, SelectionError
from ckptlin.trajectory import TensorSpec

__all__ = ["HuggingFaceCheckpoint"]

# A run of 200 checkpoints must stay far below the usual limit of 1024 descriptors a process.
_IDLE_FILES = 2


class HuggingFaceCheckpoint:
    """A model in safetensors files, as a read-only `Checkpoint`.

    Parameters
    ----------
    path : path-like, URL or UrlPath
        A directory, or a ``.safetensors`` file.
    sidecar_dirs : sequence of Path or UrlPath
        More directories to look for configuration and tokenizer in, after the checkpoint's own.

    Raises
    ------
    CheckpointNotFoundError
        If there is no model in safetensors files at the path.
    IncompleteCheckpointError
        If a shard or a tensor that the index names is missing, or a file is cut short.
    MalformedCheckpointError
        If a header, the index or ``config.json`` cannot be trusted.
    """

    def __init__(
        self, path: str | os.PathLike[str] | UrlPath, *, sidecar_dirs: Sequence[Location] = ()
    ) -> None:
        self._path = location_of(path)
        model = find_model_files(self._path)
        self._directory = model.directory
        read = [read_header(model.directory / name) for name in model.names]
        self._files = tuple(file for file, _ in read)
        self._headers = {file.name: header for file, header in read}
        self._file_of = _assign_files(self._headers, model.directory)
        if model.weight_map is not None:
            _check_index(model.weight_map, self._file_of, model.directory)
        self._tensors = {
            name: spec for header in self._headers.values() for name, spec in header.tensors.items()
        }
        self._uses_index = model.weight_map is not None
        self._sidecar_dirs = (model.directory, *sidecar_dirs)
        self._open_files = OpenFiles(_IDLE_FILES)
        metadata = {k: v for header in self._headers.values() for k, v in (header.metadata or {}).items()}
        self._tied = find_tied(self._tensors, metadata, self.config)

    def __repr__(self) -> str:
        num_tensors, num_files = len(self._tensors), len(self._files)
        return f"HuggingFaceCheckpoint({str(self._path)!r}, {num_tensors} tensors in {num_files} files)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Location:
        """The directory or file that was opened."""
        return self._path

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The files of weights, sorted by name."""
        return self._files

    @property
    def headers(self) -> Mapping[str, SafetensorsHeader]:
        """The parsed header of each file, by file name."""
        return MappingProxyType(self._headers)

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every tensor, in the order of files and, inside a file, of offsets."""
        return MappingProxyType(self._tensors)

    @property
    def file_of(self) -> Mapping[str, str]:
        """Name of the file that holds each tensor."""
        return MappingProxyType(self._file_of)

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that stand for another tensor: ``{"lm_head.weight": "model.embed_tokens.weight"}``."""
        return MappingProxyType(self._tied)

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The parsed ``config.json``, None if there is none."""
        path = self.sidecars.get("config.json")
        return None if path is None else MappingProxyType(read_json(path))

    @cached_property
    def sidecars(self) -> Mapping[str, Location]:
        """Configuration, tokenizer, chat template, and the index if the weights were found by it; by name."""
        found = dict(find_sidecars(self._sidecar_dirs))
        if self._uses_index:
            found[INDEX_NAME] = self._directory / INDEX_NAME
        return MappingProxyType(found)

    def read_into(self, tensor: str, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill ``out`` with the tensor's elements from ``start`` on, reading only their bytes.

        Threads may read at the same time.

        Parameters
        ----------
        tensor : str
        start : int
            Flat element position, in C order.
        out : numpy.ndarray
            Shape ``(n,)``, C-contiguous and writable, of the tensor's dtype or of its bits dtype.

        Raises
        ------
        SelectionError
            If there is no such tensor.
        InputError
            If ``out`` is of another kind, or reaches beyond the tensor.
        IncompleteCheckpointError
            If the file has become shorter, or is gone.
        CheckpointError
            If the file lies at a URL that does not answer.
        ValueError
            If the checkpoint was closed.
        """
        spec = self._spec(tensor)
        if out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
            raise InputError(
                f"tensor `{tensor}` is read into a writable, contiguous array of one dimension, "
                f"not into one of shape {out.shape}"
            )
        if out.dtype not in (spec.dtype.numpy, spec.dtype.bits):
            raise InputError(
                f"tensor `{tensor}` has dtype {spec.dtype.zarr} and cannot be read into an array of {out.dtype}"
            )
        if not 0 <= start <= spec.num_params - out.size:
            raise InputError(
                f"tensor `{tensor}` has {spec.num_params} elements; {out.size} from {start} on do not exist"
            )
        if out.size == 0:
            return
        path, begin = self._locate(tensor)
        buffer = out.view(np.uint8).data
        try:
            count = self._read(path, begin + start * spec.dtype.itemsize, buffer)
        except FileNotFoundError as error:
            raise _changed(f"{path} was deleted after the checkpoint was opened") from error
        if count < len(buffer):
            raise _changed(
                f"{path} ends inside tensor `{tensor}`, but was longer when the checkpoint was opened"
            )

    def prefetch(self, tensor: str, start: int, num_params: int) -> None:
        """Ask the operating system to read these elements ahead; does nothing for a checkpoint at a URL.

        Raises
        ------
        SelectionError
            If there is no such tensor.
        ValueError
            If the checkpoint was closed.
        """
        itemsize = self._spec(tensor).dtype.itemsize
        path, begin = self._locate(tensor)
        if isinstance(path, UrlPath) or num_params == 0 or not hasattr(os, "posix_fadvise"):  # macOS has none
            return
        with suppress(OSError), self._open_files.borrow(path) as fd:  # a hint; the read tells what is wrong
            os.posix_fadvise(fd, begin + start * itemsize, num_params * itemsize, os.POSIX_FADV_WILLNEED)

    def memmap(self, tensor: str) -> np.ndarray[Any, Any]:
        """Map a tensor into memory, read-only.

        Returns
        -------
        numpy.ndarray
            Of the tensor's shape and dtype; `numpy.memmap` unless it has no elements.

        Raises
        ------
        SelectionError
            If there is no such tensor.
        IncompleteCheckpointError
            If the file has become shorter, or is gone.
        InputError
            If the checkpoint lies at a URL.
        """
        spec = self._spec(tensor)
        if spec.num_params == 0:  # an empty range cannot be mapped
            empty = np.empty(spec.shape, spec.dtype.numpy)
            empty.flags.writeable = False
            return empty
        path, begin = self._locate(tensor)
        if isinstance(path, UrlPath):
            raise InputError(
                f"{path} is not on a local disk and cannot be mapped into memory; copy it there first"
            )
        try:
            return np.memmap(path, dtype=spec.dtype.numpy, mode="r", offset=begin, shape=spec.shape)
        except FileNotFoundError as error:
            raise _changed(f"{path} was deleted after the checkpoint was opened") from error
        except ValueError as error:
            raise _changed(
                f"{path} ends inside tensor `{tensor}`, but was longer when the checkpoint was opened"
            ) from error

    def close(self) -> None:
        """Close the files; maps that were handed out stay valid."""
        self._open_files.close()

    def _read(self, path: Location, offset: int, out: memoryview) -> int:
        if isinstance(path, UrlPath):
            self._open_files.check_open(path)
            return path.read_into(offset, out)
        with self._open_files.borrow(path) as fd:
            return read_fully(fd, offset, out)

    def _spec(self, tensor: str) -> TensorSpec:
        try:
            return self._tensors[tensor]
        except KeyError:
            hint = f"; it is tied to `{self._tied[tensor]}`" if tensor in self._tied else ""
            raise SelectionError(f"checkpoint {self._path} has no tensor `{tensor}`{hint}") from None

    def _locate(self, tensor: str) -> tuple[Location, int]:
        name = self._file_of[tensor]
        return self._directory / name, self._headers[name].offsets[tensor]


def _assign_files(headers: Mapping[str, SafetensorsHeader], directory: Location) -> dict[str, str]:
    file_of: dict[str, str] = {}
    for file, header in headers.items():
        for tensor in header.tensors:
            if tensor in file_of:
                raise MalformedCheckpointError(
                    f"tensor `{tensor}` is in two shards of {directory}, {file_of[tensor]} and {file}; "
                    "remove the file that does not belong to the model, or save it again"
                )
            file_of[tensor] = file
    return file_of


def _changed(what: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{what}; keep checkpoints until ckptlin is done with them, or leave this one out"
    )


def _check_index(weight_map: Mapping[str, str], file_of: Mapping[str, str], directory: Location) -> None:
    index = directory / INDEX_NAME
    missing = [tensor for tensor, file in weight_map.items() if file_of.get(tensor) != file]
    if missing:
        file = weight_map[missing[0]]
        missing = [tensor for tensor in missing if weight_map[tensor] == file]
        raise IncompleteCheckpointError(
            f"{directory / file} lacks {name_some(missing)}, which {INDEX_NAME} places there; the checkpoint "
            "is mixed from two saves or still being written: save it again, or leave it out"
        )
    unknown = [tensor for tensor in file_of if tensor not in weight_map]
    if unknown:
        raise MalformedCheckpointError(
            f"{index} does not list {name_some(unknown)}, which {file_of[unknown[0]]} holds; "
            "index and shards are from different saves: save the checkpoint again"
        )
