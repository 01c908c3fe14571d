"""Which models a user means: checkpoints, steps of a run or store, extrapolated ones, models of the hub."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptlin.checkpoints.locations import UrlPath, location_of
from ckptlin.checkpoints.model_files import has_weights
from ckptlin.checkpoints.run import MODEL_PLACES, discover, step_of
from ckptlin.errors import CheckpointNotFoundError, InputError
from ckptlin.evaluate.model_sources import (
    EvaluatedModel,
    file_name_of,
    fingerprint_of,
    model_of_directory,
    model_of_hub,
    model_of_pair,
    model_of_step,
    model_of_store,
    model_of_target,
)
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.store.metadata import ROOT_KEY
from ckptlin.store.store import TrajectoryStore

__all__ = ["EvaluatedModel", "fingerprint_of", "resolve_models"]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_EXPLICIT = re.compile(r"[0-9]+=.+", re.DOTALL)


def resolve_models(
    items: Sequence[str],
    *,
    steps: str | None = None,
    targets: Sequence[int] = (),
    method: str = "auto",
    window: str | None = None,
    base: str | None = None,
    skip_incomplete: bool = False,
    pairs: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
) -> tuple[EvaluatedModel, ...]:
    """Find the models that a user means.

    Parameters
    ----------
    items : sequence of str
        Directories of checkpoints, runs, ``STEP=PATH``, stores, and names of the hub.
    steps : str, optional
        Window of the steps of a run or store, see `ckptlin.selection.select_rows`; default all, and none where
        there are targets.
    targets : sequence of int
        Steps to extrapolate a store or run to.
    method : str
        That extrapolates.
    window : str, optional
        Steps that the method sees; default all.
    base : str, optional
        Model that a run began from, as step 0.
    skip_incomplete : bool
        Leave a run's incomplete checkpoints out, and say so.
    pairs : sequence of str
        ``A:B:N``, two checkpoints whose logits are extrapolated to step N: directories, ``STEP=PATH``, or steps
        of the one run among the items.
    progress : Progress
        Takes what is left out, and hears of exports and extrapolations.

    Raises
    ------
    InputError, SelectionError
        If an item is none of them, an option has nothing to work on, or two models are the same.
    CheckpointError
        If a checkpoint is damaged.
    """
    if not items and not pairs:
        raise InputError("no model was given; give checkpoints, a run, a store, or names of the hub")
    explicit = [item for item in items if _EXPLICIT.fullmatch(item)]
    found: list[EvaluatedModel] = []
    with_steps = 0
    for item in [*(i for i in items if i not in explicit), *([explicit] if explicit else [])]:
        if isinstance(item, str) and (single := _single(item)) is not None:
            found.append(single)
            continue
        with_steps += 1
        names = [item] if isinstance(item, str) else list(item)
        found += _of_source(
            names,
            steps=steps,
            targets=targets,
            method=method,
            window=window,
            base=base,
            skip_incomplete=skip_incomplete,
            progress=progress,
        )
    for option, value in (("--steps", steps), ("--step", targets), ("--base", base)):
        if value and not with_steps:
            raise InputError(f"{option} chooses steps of a run or a store, and none was given")
        if value and with_steps > 1:
            raise InputError(f"{option} goes with one run or store, and {with_steps} were given")
    runs = [item for item in items if item not in explicit and _single(item) is None]
    return _labelled([*found, *(model_of_pair(pair, runs) for pair in pairs)])


def _single(item: str) -> EvaluatedModel | None:
    """Return the one model that an item is; None if it is a run, a store, or has a step in its name."""
    location = location_of(item)
    if not location.exists():
        if not isinstance(location, UrlPath) and _HUB_NAME.fullmatch(item) and not item.startswith("."):
            return model_of_hub(item)
        raise CheckpointNotFoundError(
            f"{item} is neither a directory nor a name of the hub; give a checkpoint, a run, a store or "
            "org/name"
        )
    if isinstance(location, UrlPath) or (location / ROOT_KEY).exists() or not location.is_dir():
        return None
    if step_of(location) is not None or any(step_of(child) is not None for child in location.iterdir()):
        return None
    place = next((location / place for place in MODEL_PLACES if has_weights(location / place)), None)
    return None if place is None else model_of_directory(Path(str(place)), item, None)


def _of_source(
    items: list[str],
    *,
    steps: str | None,
    targets: Sequence[int],
    method: str,
    window: str | None,
    base: str | None,
    skip_incomplete: bool,
    progress: Progress,
) -> list[EvaluatedModel]:
    from ckptlin.selection import select_rows
    from ckptlin.source import open_source

    if len(items) == 1 and not (location_of(items[0]) / ROOT_KEY).exists() and not targets:
        # Checkpoints that are evaluated one by one need not be of one model, as those of a store are.
        run = discover(items, base=base, skip_incomplete=skip_incomplete)
        for left_out in run.skipped:
            progress.note(f"left out incomplete checkpoint step {left_out.step}: {left_out.reason}")
        return [model_of_step(run.checkpoints[row]) for row in select_rows(run.steps, steps)]
    source = open_source(items, base=base, skip_incomplete=skip_incomplete)
    models: list[EvaluatedModel] = []
    if isinstance(source, TrajectoryStore):
        if steps is not None or not targets:
            models += [model_of_store(source, source.steps[row]) for row in select_rows(source.steps, steps)]
    else:
        for left_out in source.skipped:
            progress.note(f"left out incomplete checkpoint step {left_out.step}: {left_out.reason}")
        chosen = select_rows(source.steps, steps) if steps is not None or not targets else ()
        models += [model_of_step(source.checkpoints[row]) for row in chosen]
    return models + [model_of_target(source, target, method, window, progress) for target in targets]


def _labelled(models: list[EvaluatedModel]) -> tuple[EvaluatedModel, ...]:
    """Give each model a label of its own that can be a file's name; two that are the same are refused."""
    sources = [model.source for model in models]
    for model in models:
        if sources.count(model.source) > 1 and model.origin != "extrapolated":
            raise InputError(f"{model.source} was given twice; give it once")
    labels = [file_name_of(model.label) for model in models]
    labelled = []
    for model, label in zip(models, labels, strict=True):
        own = label
        if labels.count(label) > 1:
            # Two runs have a step in common: their directories tell them apart.
            parent = Path(model.source.removeprefix("step ")).absolute().parent.name
            own = file_name_of(f"{parent}-{label}")
        labelled.append(replace(model, label=own))
    taken = [model.label for model in labelled]
    for model in labelled:
        if taken.count(model.label) > 1:
            raise InputError(
                f"two models would both be called {model.label}, {model.source} one of them; evaluate them in "
                "directories of their own, and compare them by `ckptlin grade DIRECTORY DIRECTORY`"
            )
    return tuple(sorted(labelled, key=_order))


def _order(model: EvaluatedModel) -> tuple[bool, int, bool]:
    """Order by step, trained before extrapolated; models without a step first, as they were given."""
    return (model.step is not None, model.step or 0, model.origin == "extrapolated")
