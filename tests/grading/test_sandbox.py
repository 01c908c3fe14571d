"""What a program may do in the sandbox, and what it may not; each with a real program."""

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from ckptlin.errors import GradingError, InputError
from ckptlin.grading.sandbox import Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is the Linux kernel's")

SLEEP = """
import os, sys
def sleep(marker):
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-S", "-E", "-c", "import time; time.sleep(1000)", marker])
"""
FORKS = (
    SLEEP
    + """
started = 0
try:
    while started < 200:
        if os.fork() == 0:
            sleep({marker!r})
        started += 1
except OSError as error:
    print(started, type(error).__name__)
"""
)


@pytest.fixture(params=[True, False], ids=["namespaces", "limits"])
def sandbox(request):
    """A sandbox with namespaces, where the kernel permits them, and one with limits alone."""
    opened = Sandbox(Limits(cpu_s=2, wall_s=20, memory_bytes=256 << 20, processes=8), namespaces=request.param)
    opened.run("")
    if request.param and opened.held["network"] != "none":
        pytest.skip("the kernel permits no namespaces here")
    return opened


@pytest.fixture
def marker() -> str:
    """A word that no other process has in its command line."""
    return f"ckptlin-{uuid.uuid4().hex}"


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command:
            found.append(command)
    return found


def test_a_program_reads_its_input_and_its_output_and_files_come_back(sandbox):
    ran = sandbox.run(
        "import sys\nprint(sys.stdin.read()[::-1], open('more').read())\nopen('left', 'w').write('ü')",
        stdin="äbc",
        files={"more": "and more"},
        take=("left", "absent"),
    )
    assert (ran.outcome, ran.returncode) == ("ok", 0)
    assert ran.stdout == "cbä and more\n"
    assert ran.files == {"left": "ü".encode()}


def test_an_error_is_told_with_its_end(sandbox):
    ran = sandbox.run("print('before')\n1 / 0")
    assert (ran.outcome, ran.returncode, ran.stdout) == ("error", 1, "before\n")
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert sandbox.run("import sys; sys.exit(3)").returncode == 3


def test_a_socket_leads_nowhere(sandbox):
    ran = sandbox.run(
        "import socket\n"
        "try:\n"
        "    connection = socket.socket()\n"
        "    connection.settimeout(1)\n"
        "    connection.connect(('127.0.0.1', 9))\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    expected = {
        "none": "unreachable",
        "socket module blocked": "PermissionError there is no network in the sandbox",
    }
    assert expected[sandbox.held["network"]] in ran.stdout


def test_a_server_of_this_machine_is_not_reached(sandbox):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).sendall(b'out')"
        assert sandbox.run(program).outcome == "error"
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_memory_beyond_the_limit_is_refused(sandbox):
    assert sandbox.run("x = bytearray(10 * 2**30)").outcome == "out of memory"
    assert sandbox.run("x = bytearray(2**20)").outcome == "ok"


def test_a_loop_ends_at_the_limit_of_processor_time_and_sleep_at_that_of_time():
    opened = Sandbox(Limits(cpu_s=1, wall_s=20))
    assert opened.run("while True: pass").outcome == "timed out"
    opened = Sandbox(Limits(cpu_s=20, wall_s=0.5))
    assert opened.run("import time\ntime.sleep(1000)").outcome == "timed out"


def test_processes_are_limited_and_none_is_left(sandbox, marker):
    ran = sandbox.run(FORKS.format(marker=marker))
    if os.getuid() == 0 or sandbox.held["processes"] == "separate":
        started, error = ran.stdout.split()
        assert int(started) < 8
        assert error == "BlockingIOError"
    assert not processes_with(marker)


def test_a_process_that_leaves_its_session_dies_with_the_program(sandbox, marker):
    ran = sandbox.run(
        f"{SLEEP}\n"
        "import glob, time\n"
        "def seen():\n"
        "    for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "        try:\n"
        f"            if open(path).read().rstrip(chr(0)).endswith({marker!r}): return True\n"
        "        except OSError: pass\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        f"        sleep({marker!r})\n"
        "    os._exit(0)\n"
        "for _ in range(1000):\n"
        "    if seen(): break\n"
        "    time.sleep(0.01)\n"
        "print(seen())\n"
    )
    assert (ran.outcome, ran.stdout) == ("ok", "True\n")
    assert not processes_with(marker)


def test_nothing_is_written_outside_where_the_kernel_permits_that(tmp_path):
    opened = Sandbox()
    target = tmp_path / "escaped"
    tmp_path.chmod(0o777)
    ran = opened.run(f"open('inside', 'w').write('x')\nopen({str(target)!r}, 'w').write('x')", take=("inside",))
    if opened.held["files"] != "read-only":
        pytest.skip("the kernel protects no files here")
    assert ran.files == {"inside": b"x"}
    assert ran.outcome == "error"
    assert "Read-only file system" in ran.stderr
    assert not target.exists()


def test_as_root_a_program_is_nobody(sandbox):
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    ran = sandbox.run("import os\nprint(os.getuid(), os.getgid(), os.getgroups())\nos.setuid(0)")
    assert re.match(r"20\d{8} 20\d{8} \[\]\n", ran.stdout)
    assert "PermissionError" in ran.stderr
    assert sandbox.held["user"].startswith("nobody")


def test_an_ordinary_user_s_programs_are_held_as_well(tmp_path, marker):
    """The tests run as root in many a container; users do not."""
    python = shutil.which("python3", path="/usr/bin")
    if os.getuid() != 0 or python is None:
        pytest.skip("needs root, and a Python that any user may run")
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout.strip() != b"True":
        pytest.skip("the system's Python is older than 3.11")
    package = tmp_path / "package"
    shutil.copytree(Path(__file__).parents[2] / "ckptlin", package / "ckptlin")
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    program = (
        "from ckptlin.grading.sandbox import Limits, Sandbox\n"
        "sandbox = Sandbox(Limits(cpu_s=2, wall_s=20, processes=8))\n"
        f"ran = sandbox.run({FORKS.format(marker=marker)!r})\n"
        "print(sandbox.held, ran.stdout)\n"
        'print(sandbox.run(\'open("/tmp/ckptlin-escaped", "w")\').stderr)\n'
    )
    done = subprocess.run(
        [python, "-B", "-c", program],
        cwd="/",
        env={"PYTHONPATH": str(package), "PATH": os.defpath},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "'processes': 'separate'" not in done.stdout:
        pytest.skip("the kernel permits ordinary users no namespaces here")
    assert "'user': 'as the caller'" in done.stdout
    assert "BlockingIOError" in done.stdout
    assert "Read-only file system" in done.stdout
    assert not processes_with(marker)


def test_output_without_end_is_cut_off():
    opened = Sandbox(Limits(file_bytes=1 << 20))
    ran = opened.run("while True: print('x' * 1000)")
    assert ran.outcome == "error"
    assert len(ran.stdout) <= 1 << 20


def test_a_program_does_not_see_the_environment_or_other_programs_files(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    ran = sandbox.run("import os\nprint(dict(os.environ))\nprint(os.listdir('.'))")
    assert "s3cret" not in ran.stdout
    assert ran.stdout.splitlines()[1] == "['main.py']"


def test_a_link_is_no_file_that_comes_back(sandbox):
    ran = sandbox.run("import os\nos.symlink('/etc/passwd', 'left')", take=("left",))
    assert ran.outcome == "ok"
    assert ran.files == {}


def test_nothing_is_left_on_disk(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tmp_path.chmod(0o755)
    sandbox.run("import os\nos.makedirs('a/b')\nos.chmod('a', 0)")
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_same_program_gives_the_same_output(sandbox):
    program = "print({'a', 'b', 'c', 'd', 'e'})"
    assert sandbox.run(program).stdout == sandbox.run(program).stdout


def test_limits_that_allow_nothing_are_refused():
    with pytest.raises(InputError, match="cpu_s of the sandbox is 0; it must be above 0"):
        Limits(cpu_s=0)


def test_a_python_that_may_not_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GradingError, match="the sandbox could not start a program"):
        Sandbox().run("print(1)")
