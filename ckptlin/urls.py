"""Where runs and stores lie: a local path, or a URL that fsspec understands (``s3://``, ``gs://``, …)."""

import os
import re
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError

__all__ = ["filesystem_of", "is_url", "local_path"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL = ("file://", "local://")
# What brings a protocol to fsspec, as an extra of ckptlin.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def is_url(location: str | os.PathLike[str]) -> bool:
    """Tell whether a location is a URL of something other than a local file.

    Examples
    --------
    >>> is_url("s3://bucket/run"), is_url("/data/run"), is_url("file:///data/run"), is_url("100=s3://b/c")
    (True, False, False, False)
    """
    text = os.fspath(location)
    return _SCHEME.match(text) is not None and not text.startswith(_LOCAL)


def local_path(location: str | os.PathLike[str]) -> Path:
    """Return a local location as a path; ``file://`` is taken off.

    Examples
    --------
    >>> local_path("file:///data/run").as_posix(), local_path("run").as_posix()
    ('/data/run', 'run')
    """
    text = os.fspath(location)
    for prefix in _LOCAL:
        if text.startswith(prefix):
            return Path(text.removeprefix(prefix))
    return Path(text)


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Credentials and endpoints come from where the file system looks for them: for S3 the environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …) and ``~/.aws``.

    Raises
    ------
    InputError
        If the protocol is not known, or the package that speaks it is not installed.
    """
    import fsspec

    protocol = url.split("://", 1)[0].lower()
    try:
        filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'ckptlin[{extra}]'" if extra else str(error)
        raise InputError(f"{url} needs a package that is not installed: {remedy}") from error
    except ValueError as error:
        raise InputError(f"{url} cannot be opened: {error}") from error
    return filesystem, str(path)
