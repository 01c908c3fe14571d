"""Where a model comes from, and how it gets to where an engine can load it.

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
from typing import Any, Literal

from ckptlin.atomic import partial_name
from ckptlin.checkpoints.locations import UrlPath
from ckptlin.checkpoints.model_files import find_model_files, read_json
from ckptlin.checkpoints.run import PROVENANCE_NAME, StepCheckpoint, discover
from ckptlin.errors import InputError
from ckptlin.progress import Progress
from ckptlin.store.store import TrajectoryStore

__all__ = [
    "EvaluatedModel",
    "Origin",
    "file_name_of",
    "fingerprint_of",
    "model_of_directory",
    "model_of_hub",
    "model_of_pair",
    "model_of_step",
    "model_of_store",
    "model_of_target",
]

Origin = Literal["checkpoint", "extrapolated", "hub"]

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
    identity : mapping or None
        What tells, without reading any weight, that it is the same as before; None if nothing does.
    """

    label: str
    source: str
    step: int | None
    origin: Origin
    method: str | None
    identity: Mapping[str, Any] | None = field(hash=False)
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
            "identity": None if self.identity is None else dict(self.identity),
        }


def file_name_of(label: str) -> str:
    """Return a label that can be the name of a file."""
    return _UNSAFE.sub("-", label)


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


def model_of_hub(name: str) -> EvaluatedModel:
    """Return a model of the hub, which is fetched when it is needed."""

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

    return EvaluatedModel(name.replace("/", "--"), name, None, "hub", None, None, opened)


def model_of_directory(place: Path, source: str, step: int | None) -> EvaluatedModel:
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
        window = record.get("window") or [None]
        label = _label_of_target(step, method, window[0], window[-1])

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        yield place

    origin: Origin = "checkpoint" if method is None else "extrapolated"
    return EvaluatedModel(label, source, step, origin, method, _files_of(place), opened)


def model_of_step(found: StepCheckpoint) -> EvaluatedModel:
    """Return a checkpoint of a run.

    Raises
    ------
    InputError
        If it lies at a URL.
    """
    if isinstance(found.path, UrlPath):
        raise InputError(
            f"checkpoint step {found.step} lies at {found.path}, and engines load from a disk; copy it, or "
            "ingest the run and give the store, from which a model is written first"
        )
    place = Path(found.path)
    model = model_of_directory(place if place.is_dir() else place.parent, str(place), found.step)
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


def model_of_store(store: TrajectoryStore, step: int) -> EvaluatedModel:
    """Return an ingested step, which is written bit for bit when it is needed."""

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


def model_of_target(
    source: Any, target: int, method: str, window: str | None, progress: Progress
) -> EvaluatedModel:
    """Return a step that is extrapolated when it is needed; what cannot be done is found out at once."""
    from ckptlin.extrapolate import extrapolate, plan_extrapolation
    from ckptlin.selection import select_rows

    rows = select_rows(source.steps, window)
    label = file_name_of(_label_of_target(target, method, source.steps[rows[0]], source.steps[rows[-1]]))
    # And not after the models before it have been evaluated.
    plan_extrapolation(source, target, partial_name(Path(label)), method=method, steps=window)

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        with _temporary(scratch, label) as directory:
            extrapolate(source, target, directory, method=method, steps=window, progress=progress)
            yield directory

    identity: dict[str, Any] = {"method": method, "steps": [source.steps[row] for row in rows]}
    if isinstance(source, TrajectoryStore):
        identity["store_fingerprints"] = [source.checkpoints[row].fingerprint for row in rows]
    else:
        identity["files"] = [_files_of(Path(str(source.checkpoints[row].path))) for row in rows]
    where = f"extrapolated from {source.location}"
    return EvaluatedModel(label, where, target, "extrapolated", method, identity, opened)


def model_of_pair(text: str, runs: Sequence[str]) -> EvaluatedModel:
    """Return two checkpoints with extrapolated logits; their directory is written when it is needed."""
    from ckptlin.logits import make_pair, write_pair

    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not all(parts) or not parts[2].isdecimal():
        raise InputError(
            f"{text!r} is no A:B:N; write two checkpoints, or two steps of the run, and the step that logits "
            "are extrapolated to"
        )
    first, second = (_checkpoint_of(part, runs) for part in parts[:2])
    pair = make_pair(first, second, target=int(parts[2]))
    steps = pair.steps or (0, 0)
    label = f"step-{pair.target}-logits-{steps[0]}-{steps[1]}"

    @contextmanager
    def opened(scratch: Path) -> Iterator[Path]:
        with _temporary(scratch, label) as directory:
            yield write_pair(pair, directory)

    identity = {"pair": pair.to_dict(), "files": [_files_of(pair.base), _files_of(pair.second)]}
    source = f"logits of {pair.base} and {pair.second}, alpha {pair.alpha:g}"
    return EvaluatedModel(label, source, pair.target, "extrapolated", "logits", identity, opened)


def _label_of_target(step: Any, method: str, first: Any, last: Any) -> str:
    """Call a step by what it was extrapolated from too: when the run grows, it becomes another model."""
    return f"step-{step}-{method}-{first}-{last}"


def _checkpoint_of(text: str, runs: Sequence[str]) -> str:
    """Return the checkpoint that a step of the run, or a path, means."""
    if not text.isdecimal() or Path(text).exists():
        return text
    if len(runs) != 1:
        raise InputError(
            f"step {text} of --logits-extrapolation is one of a run, and {len(runs)} were given; give one, or "
            "the checkpoint's directory"
        )
    with discover(runs[0]) as run:
        for found in run.checkpoints:
            if found.step == int(text):
                return f"{text}={found.path}"
    raise InputError(f"{runs[0]} has no checkpoint of step {text}, which --logits-extrapolation names")


@contextmanager
def _temporary(scratch: Path, name: str) -> Iterator[Path]:
    directory = scratch / file_name_of(name)
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
