"""Writes that are seen whole or not at all: one small file, or a directory that takes another's place.

Large files are written by whoever knows their layout; they end in `replace_directory` or a rename here.
"""

import ctypes
import errno
import os
import secrets
import shutil
import sys
from pathlib import Path

from ckptlin.errors import DiskFullError
from ckptlin.interrupts import interrupts_held

__all__ = ["exchange", "is_disk_full", "partial_name", "replace_directory", "sync_directory", "write_file"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What kernels and file systems (NFS, some FUSE mounts, 9p) answer that cannot exchange two names.
_NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM})


def is_disk_full(error: OSError) -> bool:
    """Tell whether an error says that the disk, or the user's share of it, is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def partial_name(path: Path, kind: str = "partial") -> Path:
    """Return a fresh hidden name beside ``path``, such as ``.out.partial-1f0c62ab``."""
    # 255 bytes is the limit of a file name; a name is cut to leave room for what is added to it.
    stem = path.name.encode()[:200].decode(errors="ignore")
    return path.with_name(f".{stem}.{kind}-{secrets.token_hex(4)}")


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, where the file system can."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems refuse to sync a directory; they order renames themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, also after a power cut.

    Raises
    ------
    DiskFullError
        If the disk is full; the file is then as it was before.
    """
    temporary = partial_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(
                f"the disk is full: {path} ({len(data)} bytes) could not be written; free some space"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace_directory(new: Path, old: Path) -> None:
    """Put the directory ``new`` in the place of the directory ``old``, and remove the old one's content.

    Linux exchanges the two names in one step (``renameat2`` with ``RENAME_EXCHANGE``), so that ``old`` exists
    at every moment.  Where the system or the file system cannot, ``old`` is renamed aside first: between the
    two renames nothing is there under the name, and after a crash in that moment the former content lies
    beside it as ``.NAME.replaced-XXXXXXXX``.  A Ctrl-C is answered when all of it is done.

    Parameters
    ----------
    new, old : Path
        Directories on one file system.

    Raises
    ------
    OSError
        If a rename fails; ``old`` is then as it was.  If only the removal of the former content fails, the
        new one is already in place.
    """
    with interrupts_held():
        if exchange(new, old):
            former = new
        else:
            former = partial_name(old, "replaced")
            old.rename(former)
            try:
                new.rename(old)
            except BaseException:
                former.rename(old)
                raise
        sync_directory(old.parent)
        shutil.rmtree(former)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; False where that does not exist."""
    if not sys.platform.startswith("linux"):
        return False
    # musl and glibc before 2.28 have no wrapper.
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    renameat2.restype = ctypes.c_int
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
