"""What is evaluated: checkpoints, steps of a run or store, extrapolated ones, models of the hub.

An engine loads a model from a local directory with its configuration and tokenizer.  `EvaluatedModel.open` sees
to that, and takes away again what it made.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptlin.atomic import partial_name
from ckptlin.checkpoints.locations import UrlPath, location_of
from ckptlin.checkpoints.model_files import find_model_files, has_weights, read_json
from ckptlin.checkpoints.run import MODEL_PLACES, PROVENANCE_NAME, StepCheckpoint, discover, step_of
from ckptlin.errors import CheckpointNotFoundError, InputError
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.store.metadata import ROOT_KEY
from ckptlin.store.store import TrajectoryStore

__all__ = ["EvaluatedModel", "Origin", "fingerprint_of", "resolve_models"]

Origin = str  # "checkpoint", "extrapolated" or "hub"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_EXPLICIT = re.compile(r"[0-9]+=.+", re.DOTALL)
_UNSAFE = re.compile(r"[^\w.=+-]+")
_READ_BYTES = 1 << 24


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that can be evaluated.

    Attributes
    ----------
    label : str
        What it is called in files and tables; each has its own.
    source : str
        Where it comes from, for records.
    step : int or None
        Training step, if it has one.
    origin : str
        ``checkpoint``, ``extrapolated`` or ``hub``.
    method : str or None
        Of an extrapolated one.
    identity : mapping
        What tells, without reading any weight, that it is the same as before.
    """

    label: str
    source: str
    step: int | None
    origin: Origin
    method: str | None
    identity: Mapping[str, Any] = field(hash=False)
    _open: Callable[[Path], AbstractContextManager[Path]] = field(repr=False, compare=False)

    def open(self, scratch: Path) -> AbstractContextManager[Path]:
        """Give the directory that an engine loads, while the context is open.

        Parameters
        ----------
        scratch : Path
            A directory for what has to be written first: a model from a store takes its size there.
        """
        return self._open(scratch)

    def to_dict(self) -> dict[str, Any]:
        """Return what records say of it."""
        return {
            "label": self.label,
            "step": self.step,
            "origin": self.origin,
            "method": self.method,
            "source": self.source,
            "identity": dict(self.identity),
        }


def resolve_models(
    items: Sequence[str],
    *,
    steps: str | None = None,
    targets: Sequence[int] = (),
    method: str = "auto",
    window: str | None = None,
    base: str | None = None,
    skip_incomplete: bool = False,
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
    progress : Progress
        Takes what is left out, and hears of exports and extrapolations.

    Raises
    ------
    InputError, SelectionError
        If an item is none of them, an option has nothing to work on, or two models are the same.
    CheckpointError
        If a checkpoint is damaged.
    """
    if not items:
        raise InputError("no model was given; give checkpoints, a run, a store, or names of the hub")
    explicit = [item for item in items if _EXPLICIT.fullmatch(item)]
    found: list[EvaluatedModel] = []
    with_steps = 0
    for item in [*(i for i in items if i not in explicit), *([explicit] if explicit else [])]:
        if isinstance(item, str) and (models := _single(item)):
            found += models
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
    return _labelled(found)


def fingerprint_of(directory: Path) -> str:
    """Hash the content of a model's weights: names, sizes and the crc32c of each file."""
    import google_crc32c

    files = []
    for path in _weights_of(directory):
        checksum = 0
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                checksum = google_crc32c.extend(checksum, piece)
        files.append((path.name, path.stat().st_size, checksum))
    return hashlib.blake2b(json.dumps(sorted(files)).encode(), digest_size=16).hexdigest()


def _single(item: str) -> list[EvaluatedModel]:
    """Return the one model that an item is; nothing if it is a run, a store, or has a step in its name."""
    location = location_of(item)
    if not location.exists():
        if not isinstance(location, UrlPath) and _HUB_NAME.fullmatch(item) and not item.startswith("."):
            return [_of_hub(item)]
        raise CheckpointNotFoundError(
            f"{item} is neither a directory nor a name of the hub; give a checkpoint, a run, a store or "
            "org/name"
        )
    if isinstance(location, UrlPath) or (location / ROOT_KEY).exists() or not location.is_dir():
        return []
    if step_of(location) is not None or any(step_of(child) is not None for child in location.iterdir()):
        return []
    place = next((location / place for place in MODEL_PLACES if has_weights(location / place)), None)
    return [] if place is None else [_of_directory(Path(str(place)), item, None)]


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
        return [_of_step(run.checkpoints[row]) for row in select_rows(run.steps, steps)]
    source = open_source(items, base=base, skip_incomplete=skip_incomplete)
    models: list[EvaluatedModel] = []
    if isinstance(source, TrajectoryStore):
        if steps is not None or not targets:
            models += [_of_store(source, source.steps[row]) for row in select_rows(source.steps, steps)]
    else:
        for left_out in source.skipped:
            progress.note(f"left out incomplete checkpoint step {left_out.step}: {left_out.reason}")
        chosen = select_rows(source.steps, steps) if steps is not None or not targets else ()
        models += [_of_step(source.checkpoints[row]) for row in chosen]
    return models + [_of_target(source, target, method, window, progress) for target in targets]


def _of_hub(name: str) -> EvaluatedModel:
    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        from huggingface_hub import snapshot_download

        try:
            found = snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
            )
        except (OSError, ValueError) as error:  # of the network, the disk, and the hub's own, which are both
            first = str(error).strip().split("\n")[0]
            raise InputError(f"model {name} cannot be loaded from the hub: {first}") from error
        yield Path(found)

    return EvaluatedModel(name.replace("/", "--"), name, None, "hub", None, {"hub": name}, opened)


def _of_directory(place: Path, source: str, step: int | None) -> EvaluatedModel:
    """Return the model in a directory; one that ckptlin has extrapolated says so itself."""
    method = None
    provenance = place / PROVENANCE_NAME
    if provenance.is_file():
        record = read_json(provenance)
        method = str(record.get("method"))
        step = record.get("step", step)
    name = Path(source).absolute().name
    label = f"step-{step}" if step is not None else name
    if method is not None:
        label = f"{label}-{method}"

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        yield place

    origin = "checkpoint" if method is None else "extrapolated"
    return EvaluatedModel(label, source, step, origin, method, _files_of(place), opened)


def _of_step(found: StepCheckpoint) -> EvaluatedModel:
    if isinstance(found.path, UrlPath):
        raise InputError(
            f"checkpoint step {found.step} lies at {found.path}, and engines load from a disk; copy it, or "
            "ingest the run and give the store, from which a model is written first"
        )
    place = Path(found.path)
    model = _of_directory(place if place.is_dir() else place.parent, str(place), found.step)
    elsewhere = {name: path for name, path in found.checkpoint.sidecars.items() if path.parent != place}
    if not elsewhere:
        return model

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        # Weights in one directory and the tokenizer in another, as NeMo-RL has them, are put together by links.
        with _temporary(scratch, model.label) as directory:
            directory.mkdir(parents=True)
            for path in place.iterdir() if place.is_dir() else [place]:
                (directory / path.name).symlink_to(path.absolute())
            for name, sidecar in elsewhere.items():
                if not (directory / name).exists():
                    (directory / name).parent.mkdir(exist_ok=True)
                    (directory / name).symlink_to(Path(str(sidecar)).absolute())
            yield directory

    return replace(model, _open=opened)


def _of_store(store: TrajectoryStore, step: int) -> EvaluatedModel:
    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        from ckptlin.export import export

        with _temporary(scratch, f"step-{step}") as directory:
            export(store, step, directory)
            yield directory

    committed = store.checkpoints[store.row_of(step)]
    source = f"step {step} of {store.location}"
    identity = {"store_fingerprint": committed.fingerprint}
    return EvaluatedModel(f"step-{step}", source, step, "checkpoint", None, identity, opened)


def _of_target(source: Any, target: int, method: str, window: str | None, progress: Progress) -> EvaluatedModel:
    from ckptlin.extrapolate import extrapolate, plan_extrapolation
    from ckptlin.selection import select_rows

    label = _UNSAFE.sub("-", f"step-{target}-{method}")
    # What cannot be done is found out now, and not after the models before it have been evaluated.
    plan_extrapolation(source, target, partial_name(Path(label)), method=method, steps=window)

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        with _temporary(scratch, label) as directory:
            extrapolate(source, target, directory, method=method, steps=window, progress=progress)
            yield directory

    rows = select_rows(source.steps, window)
    identity: dict[str, Any] = {"method": method, "steps": [source.steps[row] for row in rows]}
    if isinstance(source, TrajectoryStore):
        identity["store_fingerprints"] = [source.checkpoints[row].fingerprint for row in rows]
    else:
        identity["files"] = [_files_of(Path(str(source.checkpoints[row].path))) for row in rows]
    where = f"extrapolated from {source.location}"
    return EvaluatedModel(label, where, target, "extrapolated", method, identity, opened)


@contextmanager
def _temporary(scratch: Path, name: str) -> Iterator[Path]:
    directory = scratch / _UNSAFE.sub("-", name)
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _files_of(place: Path) -> dict[str, Any]:
    return {"files": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in _weights_of(place)}}


def _weights_of(place: Path) -> list[Path]:
    found = find_model_files(place)
    directory = place if place.is_dir() else place.parent
    return [directory / name for name in found.names]


def _labelled(models: list[EvaluatedModel]) -> tuple[EvaluatedModel, ...]:
    """Give each model a label of its own that can be a file's name; two that are the same are refused."""
    sources = [model.source for model in models]
    for model in models:
        if sources.count(model.source) > 1 and model.origin != "extrapolated":
            raise InputError(f"{model.source} was given twice; give it once")
    labels = [_UNSAFE.sub("-", model.label) for model in models]
    labelled = []
    for model, label in zip(models, labels, strict=True):
        own = label
        if labels.count(label) > 1:
            # Two runs have a step in common: their directories tell them apart.
            parent = Path(model.source.removeprefix("step ")).absolute().parent.name
            own = _UNSAFE.sub("-", f"{parent}-{label}")
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
