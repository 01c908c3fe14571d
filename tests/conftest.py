from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.forked import Forked
from tests.runs import MODEL, save_checkpoint, weights_at

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
