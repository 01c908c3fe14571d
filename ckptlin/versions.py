"""Versions of what results depend on."""

import importlib.metadata
import platform
from collections.abc import Iterable

from ckptlin._version import __version__

__all__ = ["installed_versions"]


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of ckptlin, Python, and those of the packages that are installed.

    Examples
    --------
    >>> sorted(installed_versions(["numpy", "no-such-package"]))
    ['ckptlin', 'numpy', 'python']
    """
    found = {"ckptlin": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
