"""The program that runs another in a sandbox: ``python sandbox_child.py CONFIGURATION``.

It is run by its path and imports nothing of ckptlin, so that it starts at once.  What the kernel permits is
taken: namespaces of its own for network, processes and mounts, in which all but the program's directory is
read-only; as root a user without rights or other processes.  The descriptor ``status`` is told, a JSON object
a line, first how the program is held, then how it ended.  Limits of resources are set in any case, and all
processes that the program leaves behind are killed.
"""

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET, _CLONE_NEWIPC = (
    0x00020000,
    0x10000000,
    0x20000000,
    0x40000000,
    0x08000000,
)
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR = 442  # the number of the system call on every architecture that has it, from Linux 5.12 on
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 8, 36, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION, _CAP_DAC_READ_SEARCH = 0x20080522, 2

# Where the network cannot be taken away, its module is; a program that means to can come by it again.
_WITHOUT_SOCKETS = """
import _socket, runpy, socket, sys
def refuse(*_, **__):
    raise PermissionError("there is no network in the sandbox")
for module in (_socket, socket):
    for name in ("socket", "SocketType", "socketpair", "fromfd", "create_connection", "getaddrinfo"):
        if hasattr(module, name):
            setattr(module, name, refuse)
sys.argv = [{program!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


def main() -> None:
    """Run the program, tell how it ended, and leave none of its processes."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    status: int = config["status"]
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    if libc is not None:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    held = _separate(libc, config)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            held = _hold(libc, config, held)
            _tell(status, {"held": held})
            _execute(config, held)
        except OSError as error:
            _tell(status, {"failed": f"{error.strerror}: {error.filename or ''}"})
        finally:
            os._exit(70)
    timed_out = not _wait(child, config["wall_s"])
    if timed_out:
        os.kill(child, signal.SIGKILL)
    _, result = os.waitpid(child, 0)
    _kill_the_rest(child)
    _tell(status, {"returncode": os.waitstatus_to_exitcode(result), "timed_out": timed_out})


def _tell(descriptor: int, what: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(what).encode() + b"\n")


def _separate(libc: Any, config: dict[str, Any]) -> dict[str, str]:
    """Leave the namespaces of the system, as far as that is permitted."""
    held = {"network": "socket module blocked", "files": "not protected", "processes": "not separate"}
    if libc is None or not config["namespaces"]:
        return held
    # Half of it could not be taken back, so that another process tries first.
    probe = os.fork()
    if probe == 0:
        permitted = False
        with suppress(OSError):
            permitted = _unshare(libc)
        os._exit(0 if permitted else 1)
    if os.waitpid(probe, 0)[1] != 0 or not _unshare(libc):
        return held
    return held | {"network": "none", "processes": "separate"}


def _unshare(libc: Any) -> bool:
    flags = _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC | _CLONE_NEWNS
    user, group = os.getuid(), os.getgid()
    if user != 0:
        flags |= _CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        return False
    if user != 0:
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    return True


def _hold(libc: Any, config: dict[str, Any], held: dict[str, str]) -> dict[str, str]:
    """Limit the process that the program will be."""
    if libc is not None and held["processes"] == "separate" and _protect_files(libc, config["directory"]):
        held = held | {"files": "read-only"}
    user = "as the caller"
    if os.getuid() == 0:
        os.chown(config["directory"], config["user"], config["user"])
        for path in os.listdir(config["directory"]):
            os.chown(os.path.join(config["directory"], path), config["user"], config["user"])
        user = _become(libc, config["user"], read_all=config["read_all"])
    if libc is not None:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for name, soft, hard in (
        ("CORE", 0, 0),
        ("CPU", config["cpu_s"], config["cpu_s"] + 1),
        ("AS", config["memory_bytes"], config["memory_bytes"]),
        ("FSIZE", config["file_bytes"], config["file_bytes"]),
        ("NOFILE", 256, 256),
        ("NPROC", config["processes"], config["processes"]),
    ):
        if name == "NPROC" and held["processes"] != "separate" and user == "as the caller":
            # It counts all processes of the user on the machine, who has some already.
            continue
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))
    return held | {"user": user}


def _become(libc: Any, user: int, *, read_all: bool) -> str:
    """Give up being root for a user who has nothing; Python may lie where only root can read it."""
    os.setgroups([])
    os.setresgid(user, user, user)
    if read_all and libc is not None:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(user, user, user)
    if not read_all or libc is None:
        return "nobody"
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = struct.pack("=6I", *[1 << _CAP_DAC_READ_SEARCH] * 3, 0, 0, 0)
    libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(sets))
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)
    return "nobody, but reads as root"


def _protect_files(libc: Any, directory: str) -> bool:
    """Make all mounts read-only but the program's directory."""
    place = os.fsencode(directory)

    def set_attributes(path: bytes, flags: int, to_set: int, to_clear: int) -> bool:
        attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", to_set, to_clear, 0, 0))
        return bool(
            libc.syscall(
                _MOUNT_SETATTR, _AT_FDCWD, ctypes.c_char_p(path), flags, attributes, ctypes.c_size_t(32)
            )
            == 0
        )

    if (
        libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0
        or libc.mount(place, place, None, ctypes.c_ulong(_MS_BIND), None) != 0
    ):
        return False
    # A list of its own processes alone; where that is not permitted, it sees that there are others.
    libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None)
    return set_attributes(b"/", _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, 0) and set_attributes(
        place, 0, 0, _MOUNT_ATTR_RDONLY
    )


def _execute(config: dict[str, Any], held: dict[str, str]) -> None:
    os.set_inheritable(config["status"], False)
    os.chdir(config["directory"])
    program = config["program"]
    words = [program] if held["network"] == "none" else ["-c", _WITHOUT_SOCKETS.format(program=program)]
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": config["directory"],
        "TMPDIR": config["directory"],
        # The same program gives the same output, and a library starts no thread for each processor.
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    os.execve(sys.executable, [sys.executable, "-P", "-s", "-B", "-X", "utf8", *words], environment)


def _wait(child: int, seconds: float) -> bool:
    """Wait until a process ends, or for so many seconds; tell whether it ended."""
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(child)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        ended = bool(poll.poll(seconds * 1000))
        os.close(descriptor)
        return ended
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.005)
    return False


def _kill_the_rest(child: int) -> None:
    """Kill what the program has left: it is ours once its parents are gone, whatever session it made."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                left = [int(word) for word in file.read().split()]
        except OSError:
            left = []
        for process in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
            time.sleep(0.001)  # some have been killed, and are not gone yet
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
