"""One writer at a time, where no system drops the lock of a process that ends: a lease in an object."""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptlin.errors import StoreError, StoreLockedError
from ckptlin.store.lock import LOCK_FILE
from ckptlin.store.url_files import UrlFiles

__all__ = ["UrlLock"]

# A holder renews its lock so often; one that did not for so long has died.  In between, requests are retried.
_RENEW_S, _STALE_S = 30.0, 150.0
# Two writers may find the same stale lock: after this long each has put its own, and one of them has lost.
_SETTLE_S = 1.0


class UrlLock:
    """The writer's lock of a store at a URL; a context manager.

    The object ``.lock`` is made with a conditional request, and holds who made it and when it was last
    renewed, which a thread does while the lock is held.  The lock of a process that is known to be gone, or
    that was not renewed for 150 seconds, is taken over.

    Parameters
    ----------
    files : UrlFiles

    Raises
    ------
    StoreLockedError
        On entry, if another process holds it.
    """

    def __init__(self, files: UrlFiles) -> None:
        self._files = files
        self._token = secrets.token_hex(8)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="ckptlin-lock", daemon=True)
        self._has_lost = False

    def __enter__(self) -> "UrlLock":
        if not self._files.create(LOCK_FILE, self._document()):
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        # What cannot be removed now is stale soon.
        with suppress(StoreError):
            if self._is_ours():
                self._files.remove(LOCK_FILE)

    def check(self) -> None:
        """Check that the lock is still held.

        Raises
        ------
        StoreLockedError
            If another process has taken it over, after this one was stopped or cut off for minutes.
        """
        if self._has_lost or not self._is_ours():
            raise StoreLockedError(
                f"another process has taken over the lock of {self._files.url}, which this one had not renewed "
                f"for {_STALE_S:.0f} s; run this again"
            )

    def _take_over(self) -> None:
        found = _parse(self._files.read(LOCK_FILE))
        if not _is_stale(found):
            raise self._locked(found)
        self._files.remove(LOCK_FILE)
        if not self._files.create(LOCK_FILE, self._document()):
            raise self._locked(_parse(self._files.read(LOCK_FILE)))
        time.sleep(_SETTLE_S)
        if not self._is_ours():
            raise self._locked(_parse(self._files.read(LOCK_FILE)))

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_S):
            # A request that failed is made again the next time; `check` finds out what came of it.
            with suppress(StoreError):
                if not self._is_ours():
                    self._has_lost = True
                    return
                self._files.write(LOCK_FILE, self._document())

    def _is_ours(self) -> bool:
        return bool(_parse(self._files.read(LOCK_FILE)).get("token") == self._token)

    def _document(self) -> bytes:
        document = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "renewed": time.time(),
        }
        return json.dumps(document).encode()

    def _locked(self, found: dict[str, Any]) -> StoreLockedError:
        who = f"process {found.get('pid')} on {found.get('host')}" if found else "another process"
        age = f", which renewed its lock {_age_s(found):.0f} s ago" if found else ""
        return StoreLockedError(
            f"{who} is writing to {self._files.url}{age}; wait until it has finished, then run this again (a "
            f"lock that was not renewed for {_STALE_S:.0f} s is taken over)"
        )


def _parse(data: bytes | None) -> dict[str, Any]:
    """Read a lock; empty if there is none, or it is none of ours."""
    try:
        document = json.loads(data or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _age_s(found: dict[str, Any]) -> float:
    renewed = found.get("renewed")
    return max(time.time() - renewed, 0.0) if isinstance(renewed, int | float) else float("inf")


def _is_stale(found: dict[str, Any]) -> bool:
    if _age_s(found) > _STALE_S:
        return True
    machine, pid = found.get("machine"), found.get("pid")
    return machine is not None and machine == _machine() and isinstance(pid, int) and not _is_running(pid)


def _machine() -> str | None:
    """Return what this system and its numbering of processes are known by; None where it does not say."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
