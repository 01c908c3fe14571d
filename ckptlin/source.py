"""Open whatever trajectories a path holds: a store, or a run's checkpoints themselves."""

import os
from collections.abc import Sequence
from pathlib import Path

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.errors import CheckpointNotFoundError, NotAStoreError
from ckptlin.store.layout import blocks_of
from ckptlin.store.metadata import ROOT_KEY
from ckptlin.store.store import TrajectoryStore

__all__ = ["open_source"]


def open_source(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    skip_incomplete: bool = False,
) -> TrajectoryStore | RunTrajectories:
    """Open a store, or else a run (directory or ``STEP=PATH`` items; see `ckptlin.checkpoints.discover`).

    Raises
    ------
    NotAStoreError
        If a single path holds neither.
    """
    single = Path(path) if isinstance(path, str | os.PathLike) else Path(path[0]) if len(path) == 1 else None
    if single is not None and base is None and (single / ROOT_KEY).exists():
        return TrajectoryStore(single)
    try:
        run = discover(path, base=base, skip_incomplete=skip_incomplete)
    except CheckpointNotFoundError as error:
        if single is None:
            raise
        raise NotAStoreError(f"{single} is neither a trajectory store nor a run: {error}") from error
    return RunTrajectories(run, partition=blocks_of)
