"""Writes a checkpoint of safetensors files so that it appears whole, or not at all.

Everything is written to a hidden directory beside the target, allocated at its final size before the first
weight is computed, and renamed when every byte is there.  What goes into which file is decided in
`weight_plan`; how one directory replaces another in `ckptlin.atomic`.
"""

import errno
import json
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptlin.atomic import is_disk_full, partial_name, replace_directory, sync_directory
from ckptlin.checkpoints.model_files import INDEX_NAME, SINGLE_NAME
from ckptlin.checkpoints.output_directory import already_there, check_output
from ckptlin.checkpoints.safetensors_header import SafetensorsHeader
from ckptlin.checkpoints.sidecars import SIDECAR_DIRECTORY
from ckptlin.checkpoints.weight_plan import WeightFilePlan, index_json
from ckptlin.errors import (
    DiskFullError,
    IncompleteCheckpointError,
    InputError,
    SelectionError,
)
from ckptlin.interrupts import OneInterrupt, interrupts_held

__all__ = ["CheckpointWriter", "check_free_space"]

# Bytes after which the disk is told to write what it has so far.
_SYNC_BYTES = 64 << 20
# Linux writes at most 2**31 - 4096 bytes in a call and says so; macOS refuses more than 2**31 - 1.
_MAX_WRITE_BYTES = 1 << 30


def check_free_space(out_dir: Path, num_bytes: int) -> None:
    """Raise `DiskFullError` if weights do not fit onto the disk of a directory, which need not be there yet."""
    there = next(parent for parent in Path(os.path.realpath(out_dir)).parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise DiskFullError(
            f"{out_dir} takes {num_bytes} bytes of weights, but its disk has {free} bytes free; "
            "free some space, or write to another disk"
        )


class CheckpointWriter:
    """A checkpoint in the making.

    Used as a context manager; leaving it without `commit`, or by an exception, removes what was written, and a
    second Ctrl-C waits for that.
    `write` may be called by several threads at a time, the other methods by one.

    Parameters
    ----------
    out_dir : Path
        Directory that the checkpoint will be.  Its parents are created.  If it is a link, the directory that it
        points to is meant.
    files : sequence of WeightFilePlan
        Weight files, all at their final size from the start.
    overwrite : bool
        Replace an existing checkpoint at the end.  Only a directory that is empty, or holds a model
        (``config.json``, ``ckptlin.json`` or safetensors files) and no directory besides
        ``additional_chat_templates``, is ever replaced: a run with its final copy at the root is not, nor a
        home directory.

    Raises
    ------
    OutputExistsError
        If there is something at ``out_dir`` that may not be replaced.  An empty directory is no obstacle.
    DiskFullError
        If the files do not fit on the disk.
    InputError
        If two files have one name, a file's name is not plain, or two files hold the same tensor; or if
        ``out_dir`` would lie in a file.
    OSError
        If the directory cannot be written to.
    """

    def __init__(self, out_dir: Path, files: Sequence[WeightFilePlan], *, overwrite: bool = False) -> None:
        self._out_dir = out_dir
        self._target = Path(os.path.realpath(out_dir))
        self._overwrite = overwrite
        self._plans = tuple(files)
        self._layout_of = _locate_tensors(self._plans)
        self._written = dict.fromkeys(self._layout_of, 0)
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}
        self._num_unsynced = 0
        self._syncing: ThreadPoolExecutor | None = None
        self._syncs: list[Future[None]] = []
        self._added: set[str] = set()
        self._interrupts = OneInterrupt()
        check_output(self._target, out_dir, overwrite=overwrite)
        self._partial = partial_name(self._target)
        # For a Ctrl-C at the few points that neither `abort` nor `__exit__` covers, such as before a `with`
        # has taken hold of the writer: what is left then goes with the writer.
        self._remains = weakref.finalize(self, shutil.rmtree, self._partial, ignore_errors=True)
        try:
            self._make_directory()
            for plan in self._plans:
                self._create(plan)
        except BaseException:
            self.abort()
            raise

    def __repr__(self) -> str:
        return f"CheckpointWriter({str(self._out_dir)!r}, {len(self._plans)} files, {self.num_bytes} bytes)"

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abort()
        finally:
            self._interrupts.__exit__(kind, error, trace)

    @property
    def num_bytes(self) -> int:
        """Size of all weight files together."""
        return sum(plan.num_bytes for plan in self._plans)

    def write(self, tensor: str, start: int, values: np.ndarray[Any, Any]) -> None:
        """Write some of a tensor's elements; each element once, in any order, from any thread.

        Parameters
        ----------
        tensor : str
        start : int
            Flat element position, in C order.
        values : numpy.ndarray
            Shape ``(n,)``, C-contiguous, of the file's dtype for this tensor, or of its bits dtype.

        Raises
        ------
        SelectionError
            If no file has such a tensor.
        InputError
            If ``values`` is of another kind, or reaches beyond the tensor.
        DiskFullError
            If the disk is full.
        """
        if tensor not in self._layout_of:
            raise SelectionError(f"{self._out_dir} has no place for a tensor `{tensor}`")
        name, layout = self._layout_of[tensor]
        spec = layout.tensors[tensor]
        if values.ndim != 1 or not values.flags.c_contiguous:
            raise InputError(
                f"tensor `{tensor}` is written from a contiguous array of one dimension, "
                f"not from one of shape {values.shape}"
            )
        if values.dtype not in (spec.dtype.numpy, spec.dtype.bits):
            raise InputError(
                f"tensor `{tensor}` is written as {spec.dtype.zarr}, not from an array of {values.dtype}"
            )
        if not 0 <= start <= spec.num_params - values.size:
            raise InputError(
                f"tensor `{tensor}` has {spec.num_params} elements; {values.size} from {start} on do not exist"
            )
        if values.size == 0:
            return
        offset = layout.offsets[tensor] + start * spec.dtype.itemsize
        self._write_fully(name, offset, values.view(np.uint8).data)
        with self._lock:
            self._written[tensor] += values.nbytes
        self._sync_soon(name, values.nbytes)

    def place(self, tensor: str, start: int) -> tuple[Path, int]:
        """Return the file and the byte where a tensor's elements from ``start`` on belong until `commit`.

        For another process to write them, which `note_written` then tells of.
        """
        name, layout = self._layout_of[tensor]
        return self._partial / name, layout.offsets[tensor] + start * layout.tensors[tensor].dtype.itemsize

    def note_written(self, tensor: str, num_params: int) -> None:
        """Note that another process has written, and synced, some of a tensor's elements."""
        _, layout = self._layout_of[tensor]
        with self._lock:
            self._written[tensor] += num_params * layout.tensors[tensor].dtype.itemsize

    def add_file(self, name: str, data: bytes) -> None:
        """Add a small file, such as ``config.json`` or ``additional_chat_templates/tools.jinja``.

        An index is checked against the files to be written, and saved as it is; without one, `commit` writes
        its own where one is needed.

        Raises
        ------
        InputError
            If the name is taken or not plain, or an index speaks of other files or sizes.
        DiskFullError
            If the disk is full.
        """
        if not _is_plain(name.removeprefix(f"{SIDECAR_DIRECTORY}/")):
            raise InputError(f"a file named {name!r} would lie outside {self._out_dir}; give a plain file name")
        if name in self._added or name in self._fds:
            raise InputError(f"{name} is written to {self._out_dir} already; add each file once")
        if name == INDEX_NAME:
            self._check_index(data)
        path = self._partial / name
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._explain(error, path) from error
        self._added.add(name)

    def commit(self, *, overwrite: bool | None = None) -> None:
        """Make the checkpoint visible under its name.

        Parameters
        ----------
        overwrite : bool, optional
            Default: as the writer was created.

        Raises
        ------
        IncompleteCheckpointError
            If some bytes of a tensor were not written, or some twice.
        OutputExistsError
            If something has come into being at the target that may not be replaced.
        DiskFullError
            If the disk is full.
        """
        overwrite = self._overwrite if overwrite is None else overwrite
        self._check_complete()
        if INDEX_NAME not in self._added and [plan.name for plan in self._plans] != [SINGLE_NAME]:
            self.add_file(INDEX_NAME, index_json(self._plans))
        try:
            for sync in self._syncs:
                sync.result()  # the system tells of an error once only
            for fd in self._fds.values():
                os.fsync(fd)
        except OSError as error:
            raise self._explain(error, self._partial) from error
        self._close_files()
        if (self._partial / SIDECAR_DIRECTORY).is_dir():
            sync_directory(self._partial / SIDECAR_DIRECTORY)
        sync_directory(self._partial)
        check_output(self._target, self._out_dir, overwrite=overwrite)
        if overwrite and self._target.is_dir() and any(self._target.iterdir()):
            replace_directory(self._partial, self._target)
        else:
            try:
                self._partial.rename(self._target)  # an empty directory may be there, and is replaced
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise already_there(self._out_dir) from error
                raise
            sync_directory(self._target.parent)
        self._remains.detach()

    def abort(self) -> None:
        """Remove everything that was written; does nothing after `commit` or a second time."""
        with interrupts_held():
            self._close_files()
            if self._remains.alive:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._remains.detach()

    def _make_directory(self) -> None:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            check_free_space(self._out_dir, self.num_bytes)
            self._partial.mkdir()
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self._out_dir} cannot be made, because {error.filename} is not a directory; "
                "give another name"
            ) from error
        except OSError as error:
            raise self._explain(error, self._target) from error

    def _create(self, plan: WeightFilePlan) -> None:
        path = self._partial / plan.name
        try:
            fd = self._fds[plan.name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            _allocate(fd, plan.num_bytes)
        except OSError as error:
            raise self._explain(error, path) from error
        self._write_fully(plan.name, 0, memoryview(plan.layout.prefix))

    def _write_fully(self, name: str, offset: int, data: memoryview) -> None:
        try:
            write_fully(self._fds[name], offset, data)
        except OSError as error:
            raise self._explain(error, self._partial / name) from error

    def _sync_soon(self, name: str, num_bytes: int) -> None:
        """Have the disk write while more is computed, or the sync at the end would wait for everything."""
        with self._lock:
            self._num_unsynced += num_bytes
            if self._num_unsynced < _SYNC_BYTES or self._fds.get(name) is None:
                return
            self._num_unsynced = 0
            if self._syncing is None:
                self._syncing = ThreadPoolExecutor(1, thread_name_prefix="ckptlin-sync")
            self._syncs.append(self._syncing.submit(os.fsync, self._fds[name]))

    def _close_files(self) -> None:
        with self._lock:
            syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.shutdown(cancel_futures=True)
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _explain(self, error: OSError, path: Path) -> OSError:
        if isinstance(error, DiskFullError):
            return error
        if not is_disk_full(error):
            # By the name that the user gave, not that of the hidden directory.
            name = "" if path == self._target else path.name
            return OSError(error.errno, error.strerror, str(self._out_dir / name))
        free = shutil.disk_usage(self._target.parent).free
        return DiskFullError(
            f"the disk is full: {self._out_dir} takes {self.num_bytes} bytes of weights, but {path.name} "
            f"could not be written with {free} bytes free; free some space, or write to another disk"
        )

    def _check_complete(self) -> None:
        for tensor, (_, layout) in self._layout_of.items():
            wanted = layout.tensors[tensor].num_bytes
            if self._written[tensor] != wanted:
                raise IncompleteCheckpointError(
                    f"tensor `{tensor}` of {self._out_dir} has {wanted} bytes, but {self._written[tensor]} "
                    "were written; write each of its elements once before the commit"
                )

    def _check_index(self, data: bytes) -> None:
        try:
            given = json.loads(data)
            agrees = given["weight_map"] == {tensor: name for tensor, (name, _) in self._layout_of.items()}
            sizes = sum(layout.tensors[tensor].num_bytes for tensor, (_, layout) in self._layout_of.items())
            agrees = agrees and given.get("metadata", {}).get("total_size", sizes) == sizes
        except (ValueError, KeyError, TypeError, AttributeError):
            agrees = False
        if not agrees:
            raise InputError(
                f"the {INDEX_NAME} given for {self._out_dir} does not describe the files that are written; "
                "leave it out, and a new one is made"
            )


def write_fully(fd: int, offset: int, data: memoryview) -> None:
    """Write all of ``data`` to a file, from byte ``offset`` on; threads may share the descriptor."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + _MAX_WRITE_BYTES], offset + done)


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\\0")


def _locate_tensors(plans: Sequence[WeightFilePlan]) -> dict[str, tuple[str, SafetensorsHeader]]:
    located: dict[str, tuple[str, SafetensorsHeader]] = {}
    if len({plan.name for plan in plans}) < len(plans):
        raise InputError("two files of weights have the same name; name each file once")
    for plan in plans:
        if not _is_plain(plan.name):
            raise InputError(
                f"a file named {plan.name!r} would lie outside the checkpoint; give a plain file name"
            )
        for tensor in plan.layout.tensors:
            if tensor in located:
                raise InputError(f"tensor `{tensor}` is to be written to {located[tensor][0]} and {plan.name}")
            located[tensor] = (plan.name, plan.layout)
    return located


def _allocate(fd: int, num_bytes: int) -> None:
    """Give a file its final size, and where the file system can, its space on the disk."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        try:
            os.posix_fallocate(fd, 0, num_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, num_bytes)
