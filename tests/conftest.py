import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.forked import Forked
from tests.runs import MODEL, save_checkpoint, weights_at
from tests.s3 import serve_s3

# The first call of a compiled function takes seconds, and no test asserts a time.
settings.register_profile("ckptlin", deadline=None, print_blob=True)
settings.load_profile("ckptlin")


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """Make a run of checkpoints at some steps; further calls with the same name add to it."""

    def make(steps, name: str = "run", model: Mapping[str, Any] = MODEL, **kwargs: Any) -> Path:
        for step in steps:
            save_checkpoint(tmp_path / name / f"checkpoint-{step}", weights_at(step, model), **kwargs)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Processes that can be killed, or told to fail, at any of their operations on files."""
    with Forked() as forks:
        yield forks


@pytest.fixture(scope="session")
def _s3_endpoint() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture
def s3_environment(_s3_endpoint, monkeypatch) -> Iterator[str]:
    """Point this process, and those that it starts, to an S3 endpoint on loopback; give its URL."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Nothing of the user's own, no look for credentials on the network, and no proxy on the way.
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    S3FileSystem.clear_instance_cache()  # instances keep the environment that they were made in
    yield _s3_endpoint
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_bucket(s3_environment) -> str:
    """Make an empty bucket on loopback and give its URL, ``s3://bucket-...``."""
    from s3fs import S3FileSystem

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"
