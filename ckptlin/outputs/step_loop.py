"""Checkpoint after checkpoint into a store: which are selected, which it has, the loop over the others."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import StepConflictError
from ckptlin.outputs.step_store import StepStore, TokenStep
from ckptlin.outputs.step_weights import StepWeights, WeightReader, prefetched, sidecar_directory
from ckptlin.progress import Progress
from ckptlin.selection import select_rows
from ckptlin.source import open_source
from ckptlin.versions import installed_versions

__all__ = ["ComingStep", "coming_steps", "divide_rows", "open_steps"]


@dataclass(frozen=True)
class ComingStep:
    """A checkpoint whose turn it is.

    Attributes
    ----------
    weights : StepWeights
    directory : Path
        With the configuration and the tokenizer of the first one.
    identity : mapping
        What tells, without reading a weight, that the checkpoint is the same.
    """

    weights: StepWeights = field(repr=False)
    directory: Path
    identity: Mapping[str, Any]

    def entry(self, engine: Mapping[str, Any], packages: Sequence[str]) -> TokenStep:
        """Return what a store keeps of the step, computed by an engine with packages of these names."""
        return TokenStep(
            step=self.weights.step,
            source=self.weights.source,
            fingerprint=self.weights.fingerprint,
            identity=self.identity,
            engine=engine,
            versions=installed_versions(packages),
        )


def open_steps(
    items: Sequence[str], *, steps: str | None, base: str | None, skip_incomplete: bool, progress: Progress
) -> tuple[WeightReader, tuple[int, ...]]:
    """Open checkpoints and select some; return their reader, and the rows of those selected.

    Raises
    ------
    InputError
        If no model can be made of their weights.
    SelectionError
        If the window holds none.
    CheckpointError, StoreError
        If what is to be read is damaged.
    """
    source = open_source(items, base=base, skip_incomplete=skip_incomplete)
    if isinstance(source, RunTrajectories):
        for left_out in source.skipped:
            progress.note(f"left out incomplete checkpoint step {left_out.step}: {left_out.reason}")
    reader = WeightReader(source)
    reader.check_loadable()
    return reader, select_rows(source.steps, steps)


def divide_rows(
    store: StepStore | None, reader: WeightReader, rows: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divide rows into those to compute, and steps that a store, if there is one, has of the same checkpoints.

    Raises
    ------
    StepConflictError
        If it has a step of another checkpoint.
    """
    if store is None:
        return tuple(rows), ()
    missing, present = [], []
    steps = reader.source.steps
    for row in rows:
        known = store.find(steps[row])
        if known is None:
            missing.append(row)
            continue
        identity = json.loads(json.dumps(reader.identity(row)))
        if known.identity != identity and known.fingerprint != reader.fingerprint(row):
            raise StepConflictError(
                f"step {steps[row]} is in {store.path} from {known.source}, which has other weights than "
                f"{reader.where(row)}; give another --out"
            )
        present.append(steps[row])
    return tuple(missing), tuple(present)


@contextmanager
def coming_steps(reader: WeightReader, rows: Sequence[int]) -> Iterator[Iterator[ComingStep]]:
    """Give the checkpoints of some rows one after the other; the next is read while one is used."""
    with (
        sidecar_directory(reader.source, rows[0]) as directory,
        prefetched(reader, rows, lambda num_bytes: None) as coming,
    ):
        yield (
            ComingStep(weights, directory, reader.identity(row))
            for row, weights in zip(rows, coming, strict=True)
        )
