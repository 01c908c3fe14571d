"""An S3 endpoint on loopback, for tests of what lies at URLs; the fixture is ``s3_bucket``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["serve_s3", "upload"]


@contextmanager
def serve_s3() -> Iterator[str]:
    """Serve S3 from this process's memory while the block runs; give the endpoint's URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def upload(directory: Path, url: str) -> str:
    """Copy the files of a directory, or one file, to a URL; return the URL."""
    from ckptlin.urls import filesystem_of

    filesystem, path = filesystem_of(url)
    if directory.is_file():
        filesystem.pipe_file(path, directory.read_bytes())
    for file in directory.rglob("*"):
        if file.is_file():
            filesystem.pipe_file(f"{path}/{file.relative_to(directory).as_posix()}", file.read_bytes())
    return url
