"""Which checkpoints a run consists of: found in its directory, or given one by one.

Where trainers put the model inside a checkpoint's directory is `MODEL_PLACES`; what the directories are called
is `STEP_NAMES`.  Whether the checkpoints fit together is `consistency`'s business.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ckptlin.checkpoints.base import Checkpoint
from ckptlin.checkpoints.huggingface import HuggingFaceCheckpoint
from ckptlin.checkpoints.locations import Location, UrlPath, is_same_location, location_of, map_together
from ckptlin.checkpoints.model_files import has_weights, other_format, read_json
from ckptlin.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    InputError,
)
from ckptlin.segments import Jump, merge_jumps, read_jumps

__all__ = [
    "MODEL_PLACES",
    "PROVENANCE_NAME",
    "STEP_NAMES",
    "Run",
    "SkippedCheckpoint",
    "StepCheckpoint",
    "discover",
    "step_of",
]

STEP_NAMES: tuple[re.Pattern[str], ...] = (
    re.compile(r"checkpoint[-_]?([0-9]+)"),  # transformers, TRL
    re.compile(r"global[-_]?step[-_]?([0-9]+)(?:_hf)?"),  # verl, DeepSpeed; OpenRLHF writes global_step100_hf
    re.compile(r"step[-_]?([0-9]+)"),  # NeMo-RL, open-instruct, prime-rl
    re.compile(r"iter(?:ation)?[-_]?([0-9]+)"),  # Megatron, slime
    re.compile(r"ckpt[-_]?([0-9]+)"),
    re.compile(r"epoch[0-9]+epochstep[0-9]+globalstep([0-9]+)"),  # AReaL
)
MODEL_PLACES: tuple[str, ...] = (
    ".",
    "hf_model",
    "actor/hf_model",
    "actor/huggingface",  # verl; always has the configuration and tokenizer, the weights only if asked for
    "huggingface",
    "hf",
    "actor",
    "policy/hf_model",
    "policy/huggingface",
    "policy/weights",  # NeMo-RL
    "policy",
    "model",
)
# What an extrapolated checkpoint says of itself; taken for a trained one it would falsify every fit.
PROVENANCE_NAME = "ckptlin.json"
_SIDECAR_PLACES = (*MODEL_PLACES, "policy/tokenizer")
_NAMES_SOUGHT = "checkpoint-N, global_step_N, step_N, iter_N or ckpt-N"
_EXPLICIT = re.compile(r"([0-9]+)=(.+)", re.DOTALL)
# DeepSpeed keeps its optimizer state in a directory of this name inside a transformers checkpoint.
_DEEPSPEED_STATE = re.compile(r"global_step[0-9]+")


@dataclass(frozen=True, slots=True)
class StepCheckpoint:
    """One checkpoint of a run.

    Attributes
    ----------
    step : int
    path : Path or UrlPath
        Directory (or file) of the model itself, such as ``run/global_step_100/actor/huggingface``.
    checkpoint : Checkpoint
    """

    step: int
    path: Location
    checkpoint: Checkpoint


class SkippedCheckpoint(NamedTuple):
    """A checkpoint that was left out because it is incomplete, and why."""

    step: int
    path: Location
    reason: str


class DiscoverArguments(NamedTuple):
    """Arguments of `discover`, with absolute paths."""

    items: tuple[str, ...]
    base: str | None
    skip_incomplete: bool


@dataclass(frozen=True, slots=True)
class Run:
    """The checkpoints of a run, in ascending order of their steps.

    Attributes
    ----------
    location : str
        Where they were looked for, for messages and records.
    checkpoints : tuple of StepCheckpoint
    skipped : tuple of SkippedCheckpoint
        What ``skip_incomplete`` left out.
    arguments : DiscoverArguments
        What finds the run again, in another process or directory.
    jumps : tuple of Jump
        All that the trainer's record beside the checkpoints lists, ascending, those to other steps included.
    """

    location: str
    checkpoints: tuple[StepCheckpoint, ...]
    skipped: tuple[SkippedCheckpoint, ...]
    arguments: DiscoverArguments
    jumps: tuple[Jump, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps, ascending."""
        return tuple(item.step for item in self.checkpoints)

    def close(self) -> None:
        """Close the files of all checkpoints."""
        for item in self.checkpoints:
            item.checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Candidate:
    step: int
    path: Location


def discover(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    skip_incomplete: bool = False,
) -> Run:
    """Find and open the checkpoints of a run.

    Parameters
    ----------
    run : path-like, or sequence of path-like or ``"STEP=PATH"``
        A run's directory, whose children are named as in `STEP_NAMES` and hold the model in one of
        `MODEL_PLACES` (the first that has weights).  A model at the run's own root, beside such children, is
        taken for the final copy that trainers save there, and left out; so are temporary directories
        (``tmp-checkpoint-N``).  A single checkpoint works as a run of one: its step is in its name, or in its
        ``trainer_state.json``.  Several items are joined.  In ``STEP=PATH`` everything up to the first ``=``
        is the step; a path that itself begins like that is written ``./100=x``.  A path may be a URL that
        fsspec reads, such as ``s3://bucket/run``.  Jumps are read from the trainer's record in the directory
        that a checkpoint lies in, if its own name gives its step.
    base : path-like or URL, optional
        The model that training began from, as step 0.
    skip_incomplete : bool
        Leave checkpoints out that are incomplete, and list them in the result, instead of raising.

    Raises
    ------
    CheckpointNotFoundError
        If a path does not exist, holds no checkpoint, or only one of a format that ckptlin does not read.
    IncompleteCheckpointError
        If a checkpoint is incomplete or has no weights.
    CheckpointMismatchError
        If two directories stand for the same step.
    MalformedCheckpointError
        If the trainer's record is damaged.
    InputError
        If a run's directory holds a checkpoint that ckptlin has extrapolated, and that no recorded jump leads
        to; the step of a checkpoint cannot be told, there is no item, ``base`` meets a step 0, or what reads a
        URL is not installed.
    CheckpointError
        If access to a URL is denied, or its service cannot be reached.
    """
    items = [run] if isinstance(run, str | os.PathLike) else list(run)
    if not items:
        raise InputError(
            "no checkpoint was given; give the directory of a run, or STEP=PATH for each checkpoint"
        )
    candidates = [candidate for item in items for candidate in _expand(os.fspath(item))]
    # After the checkpoints were listed, since a jump is recorded before its checkpoint appears; and without the
    # base model, which may lie in another run.
    jumps = _recorded_jumps(candidates)
    if base is not None:
        _add_base(candidates, location_of(base))
    opened: list[StepCheckpoint] = []
    skipped: list[SkippedCheckpoint] = []
    candidates.sort(key=lambda c: c.step)

    def try_open(candidate: _Candidate) -> StepCheckpoint | SkippedCheckpoint:
        try:
            return _open(candidate)
        except IncompleteCheckpointError as error:
            if not skip_incomplete:
                raise
            return SkippedCheckpoint(candidate.step, candidate.path, str(error))

    is_remote = any(isinstance(c.path, UrlPath) for c in candidates)
    for found in map_together(try_open, candidates) if is_remote else map(try_open, candidates):
        if isinstance(found, StepCheckpoint):
            opened.append(found)
        else:
            skipped.append(found)
    location = ", ".join(os.fspath(item) for item in items)
    _reject_same_step(opened)
    if not opened:
        raise CheckpointNotFoundError(
            f"{location} holds no complete checkpoint; {len(skipped)} were skipped, the first because "
            f"{skipped[0].reason}"
        )
    arguments = DiscoverArguments(
        tuple(_absolute(os.fspath(item)) for item in items),
        None if base is None else _absolute(os.fspath(base)),
        skip_incomplete,
    )
    return Run(location, tuple(opened), tuple(skipped), arguments, jumps)


def step_of(path: Location) -> int | None:
    """Read the step from the name of a checkpoint's directory or file, None if it has none.

    Examples
    --------
    >>> from pathlib import Path
    >>> step_of(Path("run/checkpoint-0100")), step_of(Path("run/tmp-checkpoint-100"))
    (100, None)
    """
    # A name such as `.` or `..` says nothing; links keep their own name.
    name = path.name if isinstance(path, UrlPath) else os.path.basename(os.path.abspath(path))
    name = name.removesuffix(".safetensors")
    for pattern in STEP_NAMES:
        if match := pattern.fullmatch(name):
            return int(match[1])
    return None


def _expand(item: str) -> list[_Candidate]:
    if match := _EXPLICIT.fullmatch(item):
        step, path = int(match[1]), location_of(match[2])
        if not path.exists():
            raise CheckpointNotFoundError(
                f"{path}, given as step {step}, does not exist; write STEP=PATH with the path of a checkpoint"
            )
        return [_Candidate(step, path)]
    path = location_of(item)
    if not path.exists():
        raise CheckpointNotFoundError(
            f"{path} does not exist; give the directory of a run, or STEP=PATH for each checkpoint"
        )
    if path.is_file() and path.suffix != ".safetensors":
        raise CheckpointNotFoundError(
            f"{path} is not a safetensors file; give the directory of a run, or STEP=PATH for each checkpoint"
        )
    children = _numbered_children(path)
    if any(_find_place(child.path) for child in children):
        extrapolated = [child for child in children if (child.path / PROVENANCE_NAME).exists()]
        landings = {jump.to_step for jump in read_jumps(path)} if extrapolated else set()
        for child in extrapolated:
            if child.step not in landings:
                raise InputError(
                    f"checkpoint step {child.step} ({child.path}) was extrapolated by ckptlin, not trained; "
                    "move it out of the run, or name each checkpoint as STEP=PATH if it belongs there"
                )
        return children
    if _find_place(path) and (
        step_of(path) is not None or all(_DEEPSPEED_STATE.fullmatch(child.path.name) for child in children)
    ):
        return [_Candidate(_step_of_single(path), path)]
    if children:
        return children
    if path.is_file() or step_of(path) is not None:
        return [_Candidate(_step_of_single(path), path)]
    found = other_format(path)
    instead = (
        f"; it holds {found[0]}: {found[1]}" if found else "; give the directory that holds them, or STEP=PATH"
    )
    raise CheckpointNotFoundError(
        f"{path} holds no checkpoint: neither a directory named {_NAMES_SOUGHT}, nor a model in safetensors"
        f"{instead}"
    )


def _recorded_jumps(candidates: Sequence[_Candidate]) -> tuple[Jump, ...]:
    """Read the jumps of the runs that checkpoints lie in.

    One that was given another step than its name has is no witness: the record speaks of the run's own steps.
    """
    runs = {_directory_of(c.path): None for c in candidates if step_of(c.path) == c.step and c.path.is_dir()}
    return merge_jumps(*(read_jumps(run) for run in runs if run is not None))


def _directory_of(path: Location) -> Location | None:
    """Return what holds a checkpoint; None for a bucket, which nothing holds."""
    if isinstance(path, UrlPath):
        return path.parent if "/" in str(path).partition("://")[2] else None
    return Path(os.path.abspath(path)).parent  # of `.` too


def _absolute(item: str) -> str:
    match = _EXPLICIT.fullmatch(item)
    location = location_of(match[2] if match else item)
    if not isinstance(location, UrlPath):
        location = location.absolute()
    return f"{match[1]}={location}" if match else str(location)


def _numbered_children(path: Location) -> list[_Candidate]:
    if not path.is_dir():
        return []
    children = [_Candidate(step, child) for child in path.iterdir() if (step := step_of(child)) is not None]
    children = sorted((c for c in children if c.path.is_dir()), key=lambda c: (c.step, c.path.name))
    if isinstance(path, UrlPath):
        path.list_together(child.path.name for child in children)
    return children


def _find_place(path: Location) -> Location | None:
    """Find where in a checkpoint's directory the model lies."""
    if path.is_file():
        return path
    return next((path / place for place in MODEL_PLACES if has_weights(path / place)), None)


def _step_of_single(path: Location) -> int:
    step = step_of(path)
    if step is not None:
        return step
    state = (path if path.is_dir() else path.parent) / "trainer_state.json"
    if state.is_file():
        step = read_json(state).get("global_step")
        if isinstance(step, int) and step >= 0:
            return step
    raise InputError(
        f"the step of {path} cannot be told: its name is not like {_NAMES_SOUGHT}, and {state} gives none; "
        f"write it as STEP={path}"
    )


def _add_base(candidates: list[_Candidate], base: Location) -> None:
    if not base.exists():
        raise CheckpointNotFoundError(
            f"the base model {base} does not exist; give the directory of a checkpoint"
        )
    zeros = [candidate.path for candidate in candidates if candidate.step == 0]
    for path in zeros:
        if not is_same_location(path, base):
            raise InputError(
                f"the base model {base} would be step 0, but {path} is step 0 already; leave one of them out"
            )
    if not zeros:
        candidates.append(_Candidate(0, base))


def _open(candidate: _Candidate) -> StepCheckpoint:
    path = candidate.path
    place = _find_place(path)
    if place is None:
        raise _explain_no_weights(candidate)
    others = [path / name for name in _SIDECAR_PLACES if path / name != place and (path / name).is_dir()]
    return StepCheckpoint(candidate.step, place, HuggingFaceCheckpoint(place, sidecar_dirs=others))


def _explain_no_weights(candidate: _Candidate) -> CheckpointError:
    path = candidate.path
    for place in MODEL_PLACES:
        if found := other_format(path / place):
            what, remedy = found
            return CheckpointNotFoundError(
                f"checkpoint step {candidate.step} ({path / place}) holds {what}; "
                f"ckptlin reads whole models in safetensors: {remedy}"
            )
    return IncompleteCheckpointError(
        f"checkpoint step {candidate.step} ({path}) holds no weights, neither itself nor in "
        f"{', '.join(MODEL_PLACES[1:])}; it is still being written or was half deleted: wait, restore it, "
        "or leave it out with --skip-incomplete"
    )


def _reject_same_step(opened: Sequence[StepCheckpoint]) -> None:
    for first, second in pairwise(opened):
        if first.step == second.step:
            raise CheckpointMismatchError(
                f"step {first.step} is there twice, as {first.path} and as {second.path}; "
                "move one of them elsewhere, or give each checkpoint as STEP=PATH"
            )
