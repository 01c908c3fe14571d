"""Large reads and writes past the page cache.

Copying through the page cache costs a processor about as much as decoding or fitting the same bytes, and
pushes out what others keep there.  So what lies in the cache already is read from it, and everything else
directly from the disk; a large file is written directly.  Where the system or the file system knows no such
thing (``O_DIRECT`` is Linux's), everything goes through the cache.
"""

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.memory import IO_BUFFER_BYTES

__all__ = [
    "IO_BUFFER_BYTES",
    "MIN_DIRECT_BYTES",
    "is_cached",
    "open_direct",
    "read_direct",
    "read_file",
    "write_new_file",
]

# Below this a system call through the cache is cheaper.
MIN_DIRECT_BYTES = 1 << 18
# Offsets, lengths and addresses are multiples of this; no disk or file system in use asks for more.
_ALIGN = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_LIBC = ctypes.CDLL(None) if _O_DIRECT else None

_of_thread = threading.local()


def _aligned(num_bytes: int) -> memoryview:
    """Return some of this thread's buffer, whose content is the caller's until the next call."""
    if not hasattr(_of_thread, "buffer"):
        _of_thread.buffer = mmap.mmap(-1, IO_BUFFER_BYTES)
    return memoryview(_of_thread.buffer)[:num_bytes]


def _round_up(number: int) -> int:
    return -(-number // _ALIGN) * _ALIGN


def open_direct(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """Open a file past the cache; None where that is not possible.

    Raises
    ------
    OSError
        If the file cannot be opened at all.
    """
    if not _O_DIRECT:
        return None
    try:
        return os.open(path, flags | _O_DIRECT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            return None
        raise


def is_cached(fd: int, offset: int, num_bytes: int) -> bool:
    """Tell whether all pages of a part of a file are in the page cache.

    Reading with ``RWF_NOWAIT`` would tell too, but starts reading ahead into the cache (Linux 6).
    """
    if _LIBC is None or num_bytes == 0:
        return True
    lead = offset % mmap.ALLOCATIONGRANULARITY
    try:
        pages = mmap.mmap(fd, lead + num_bytes, prot=mmap.PROT_READ, offset=offset - lead)
    except (OSError, ValueError):  # the file has become shorter, or cannot be mapped: reading it tells
        return True
    with pages:
        resident = (ctypes.c_ubyte * -(-(lead + num_bytes) // mmap.PAGESIZE))()
        address: Any = np.frombuffer(memoryview(pages), np.uint8)
        known = _LIBC.mincore(ctypes.c_void_p(address.ctypes.data), ctypes.c_size_t(len(pages)), resident) == 0
        del address  # a map that is still seen cannot be closed
    return not known or bool((np.frombuffer(memoryview(resident), np.uint8) & 1).all())


def read_direct(fd: int, offset: int, out: memoryview) -> int:
    """Fill ``out`` from a descriptor of `open_direct`; return the bytes read, fewer only at the file's end."""
    done = 0
    while done < len(out):
        position = offset + done
        lead = position % _ALIGN
        wanted = min(IO_BUFFER_BYTES, _round_up(lead + len(out) - done))
        piece = _aligned(wanted)
        found = os.preadv(fd, [piece], position - lead) - lead
        if found <= 0:
            break
        count = min(found, len(out) - done)
        out[done : done + count] = piece[lead : lead + count]
        done += count
    return done


def read_file(path: Path) -> bytes | bytearray:
    """Return a file's content.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < MIN_DIRECT_BYTES:
            return file.read()
        direct = None if is_cached(file.fileno(), 0, size) else open_direct(path)
        if direct is None:
            return file.readall()
    try:
        content = bytearray(size)
        done = read_direct(direct, 0, memoryview(content))
    finally:
        os.close(direct)
    del content[done:]
    return content


def write_new_file(path: Path, data: bytes) -> int:
    """Write a file that is not there yet; return its descriptor, to be synced and closed.

    Raises
    ------
    OSError
        If it cannot be written; what was written of it stays.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = open_direct(path, flags) if len(data) >= MIN_DIRECT_BYTES else None
    if fd is not None:
        try:
            _write_direct(fd, data)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EINVAL:
                raise
            path.unlink()
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_direct(fd: int, data: bytes) -> None:
    view = memoryview(data)
    done = 0
    while done < len(view):
        count = min(IO_BUFFER_BYTES, len(view) - done)
        padded = _round_up(count)
        piece = _aligned(padded)
        piece[:count] = view[done : done + count]
        written = os.pwrite(fd, piece, done)
        if written < padded:  # a disk that is nearly full, or a signal; the next call says which
            written -= written % _ALIGN
        done += min(written, count)
    os.ftruncate(fd, len(view))
