"""Open whatever trajectories a path or URL holds: a store, or a run's checkpoints themselves."""

import os
from collections.abc import Sequence

from ckptlin.checkpoints import RunTrajectories, discover
from ckptlin.checkpoints.locations import location_of
from ckptlin.errors import CheckpointNotFoundError, InputError, NotAStoreError
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
    """Open a store, or else a run (directory, URL or ``STEP=PATH`` items; see `ckptlin.checkpoints.discover`).

    Raises
    ------
    NotAStoreError
        If a single path holds neither.
    InputError
        If something else is given beside a store.
    """
    items = [path] if isinstance(path, str | os.PathLike) else list(path)
    stores = [location for location in map(location_of, items) if (location / ROOT_KEY).exists()]
    if stores and len(items) > 1:
        raise InputError(f"{stores[0]} is a store, which holds a run already; give it alone")
    if stores and base is not None:
        raise InputError(
            f"--base goes with a run, and {stores[0]} is a store; give the base model to `ckptlin ingest`"
        )
    if stores:
        return TrajectoryStore(str(stores[0]))
    try:
        run = discover(items, base=base, skip_incomplete=skip_incomplete)
    except CheckpointNotFoundError as error:
        if len(items) != 1:
            raise
        raise NotAStoreError(f"{items[0]} is neither a trajectory store nor a run: {error}") from error
    return RunTrajectories(run, partition=blocks_of)
