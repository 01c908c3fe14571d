"""Where a run was extended by extrapolation instead of training: its jumps, and the segments between them.

Owns the record of jumps, which the trainer writes beside its checkpoints, ``ingest`` keeps in the store, and
every reader uses; and the sentence that an operation says when its steps cross a jump.  Pure data: what a jump
was made of is the trainer's business, and which steps to take is `ckptlin.selection`'s.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ckptlin.errors import InputError, MalformedCheckpointError

__all__ = [
    "TRAIN_RECORD_NAME",
    "Directory",
    "Jump",
    "jumps_among",
    "merge_jumps",
    "read_jumps",
    "segments_of",
    "segments_to_dict",
    "warn_of_jumps",
]

# What the trainer says of a run, in the run's directory.
TRAIN_RECORD_NAME = "ckptlin-train.json"


class Directory(Protocol):
    """What `read_jumps` asks of a location: a `pathlib.Path` or a `ckptlin.checkpoints.locations.UrlPath`."""

    def __truediv__(self, name: str, /) -> "Directory":
        """The location of what lies in it."""
        ...

    def exists(self) -> bool:
        """Tell whether there is anything."""
        ...

    def read_bytes(self) -> bytes:
        """Read a whole file; FileNotFoundError if it is gone."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Jump:
    """An extrapolation inside a run: one checkpoint was predicted from another, and training went on from it.

    Attributes
    ----------
    from_step : int
        The last step before it, which was trained.
    to_step : int
        The step of the predicted checkpoint; later than ``from_step``.
    method : str
        What predicted it, as ``--method`` takes it.

    Raises
    ------
    InputError
        On construction, if a step is no whole number from 0 on, ``to_step`` is not the later one, or the method
        is no name.

    Examples
    --------
    >>> print(Jump(20, 40, "two-point"))
    from step 20 to 40 (two-point)
    """

    from_step: int
    to_step: int
    method: str

    def __post_init__(self) -> None:
        for name, step in (("from", self.from_step), ("to", self.to_step)):
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise InputError(f"`{name}` of a jump must be a step, a whole number from 0 on, not {step!r}")
        if self.to_step <= self.from_step:
            raise InputError(
                f"a jump must lead to a later step, not from {self.from_step} to {self.to_step}; "
                "where nothing was extrapolated there is no jump"
            )
        if not isinstance(self.method, str) or not self.method:
            raise InputError(f"`method` of a jump must be the name of a method, not {self.method!r}")

    def __str__(self) -> str:
        return f"from step {self.from_step} to {self.to_step} ({self.method})"

    def to_dict(self) -> dict[str, Any]:
        """Return the jump as plain data, ``{"from": 20, "to": 40, "method": "two-point"}``."""
        return {"from": self.from_step, "to": self.to_step, "method": self.method}

    @classmethod
    def from_dict(cls, data: Any) -> "Jump":
        """Undo `to_dict`; what a writer has put beside the three is left alone.

        Raises
        ------
        InputError
            If one of them is missing, or makes no jump.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a jump must be an object with `from`, `to` and `method`, not {data!r}")
        for name in ("from", "to", "method"):
            if name not in data:
                raise InputError(f"a jump lacks `{name}`")
        return cls(data["from"], data["to"], data["method"])


def read_jumps(run: Directory) -> tuple[Jump, ...]:
    """Read the jumps of a run from its trainer's record, `TRAIN_RECORD_NAME` in the run's directory.

    A run without the file, or whose file has no ``jumps``, has none.  A jump stands in the record before its
    checkpoint appears: whoever lists checkpoints first, and reads the record then, knows of the jump to each.

    Parameters
    ----------
    run : pathlib.Path or ckptlin.checkpoints.locations.UrlPath

    Returns
    -------
    tuple of Jump
        Ascending.

    Raises
    ------
    MalformedCheckpointError
        If the file is no JSON object, an entry is no jump, or two jumps overlap.
    """
    path = run / TRAIN_RECORD_NAME
    if not path.exists():
        return ()
    remedy = "restore the file, or move it away to have the run read as one without jumps"
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpointError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(record, dict):
        raise MalformedCheckpointError(
            f"{path} holds a JSON {type(record).__name__} where an object is expected; {remedy}"
        )
    entries = record.get("jumps", [])
    if not isinstance(entries, list):
        raise MalformedCheckpointError(
            f"`jumps` in {path} is a JSON {type(entries).__name__} where a list is expected; {remedy}"
        )
    jumps: list[Jump] = []
    for number, entry in enumerate(entries, start=1):
        try:
            jumps.append(Jump.from_dict(entry))
        except InputError as error:
            raise MalformedCheckpointError(
                f"entry {number} of `jumps` in {path} cannot be read: {error}; {remedy}"
            ) from error
    jumps.sort()
    for i, later in enumerate(jumps[1:]):
        if later.from_step < jumps[i].to_step:
            raise MalformedCheckpointError(
                f"`jumps` in {path} has one {jumps[i]} and one {later}, but no step is trained inside a jump; "
                f"{remedy}"
            )
    return tuple(jumps)


def segments_of(steps: Sequence[int], jumps: Iterable[Jump]) -> tuple[tuple[int, ...], ...]:
    """Divide steps into segments: the longest stretches without a jump inside.

    Parameters
    ----------
    steps : sequence of int
        Ascending.
    jumps : iterable of Jump
        In any order; those elsewhere do not matter.

    Examples
    --------
    >>> segments_of([0, 10, 20, 40, 50], [Jump(20, 40, "two-point")])
    ((0, 10, 20), (40, 50))
    >>> segments_of([0, 50], [Jump(20, 40, "two-point")])  # neither end of the jump is among the steps
    ((0,), (50,))
    """
    known = tuple(jumps)
    parts: list[list[int]] = []
    for step in steps:
        before = parts[-1][-1] if parts else None
        if before is None or any(j.from_step < step and before < j.to_step for j in known):
            parts.append([])
        parts[-1].append(step)
    return tuple(map(tuple, parts))


def jumps_among(steps: Sequence[int], jumps: Iterable[Jump]) -> tuple[Jump, ...]:
    """Select the jumps that divide some ascending steps, in their order.

    Examples
    --------
    >>> jumps_among([0, 10, 20], [Jump(20, 40, "two-point")]), len(jumps_among([20, 40], [Jump(20, 40, "ols")]))
    ((), 1)
    """
    if not steps:
        return ()
    first, last = steps[0], steps[-1]
    return tuple(sorted(j for j in jumps if max(j.from_step, first) < min(j.to_step, last)))


def merge_jumps(*known: Iterable[Jump]) -> tuple[Jump, ...]:
    """Unite what several records say of the same run, ascending; of the same jump the last one counts.

    Examples
    --------
    >>> merge_jumps([Jump(20, 40, "ols")], [Jump(60, 80, "ols"), Jump(20, 40, "relex:rank=1")])[0].method
    'relex:rank=1'
    """
    by_steps = {(jump.from_step, jump.to_step): jump for jumps in known for jump in jumps}
    return tuple(sorted(by_steps.values()))


def segments_to_dict(steps: Sequence[int], jumps: Iterable[Jump]) -> dict[str, Any]:
    """Say as plain data how jumps divide some steps: ``segments``, ``crosses_jump``, and the ``jumps``.

    Examples
    --------
    >>> segments_to_dict([0, 10, 20], [])
    {'segments': [[0, 10, 20]], 'crosses_jump': False, 'jumps': []}
    """
    inside = jumps_among(steps, jumps)
    return {
        "segments": [list(part) for part in segments_of(steps, inside)],
        "crosses_jump": bool(inside),
        "jumps": [jump.to_dict() for jump in inside],
    }


def warn_of_jumps(
    steps: Sequence[int], jumps: Iterable[Jump], consequence: str, *, min_steps: int = 2
) -> tuple[str, ...]:
    """Say in a sentence that steps cross a jump, what follows, and which window does not; nothing if none do.

    Parameters
    ----------
    steps : sequence of int
        Ascending.
    jumps : iterable of Jump
    consequence : str
        What it means for the operation, to stand after "so".
    min_steps : int
        Steps that the operation needs: a window of fewer is not proposed.

    Examples
    --------
    >>> print(*warn_of_jumps([0, 20, 40, 60], [Jump(20, 40, "two-point")], "the fit takes it for training"))
    steps 0 to 60 cross the jump from step 20 to 40 (two-point), which was extrapolated and not trained, so \
the fit takes it for training; --steps 40:60 stays inside their last segment
    """
    inside = jumps_among(steps, jumps)
    if not inside:
        return ()
    crossed = f"the jump {inside[-1]}, which was"
    if len(inside) > 1:
        crossed = f"{len(inside)} jumps, the last {inside[-1]}, which were"
    parts = segments_of(steps, inside)
    long_enough = [part for part in parts if len(part) >= min_steps]
    if not long_enough:
        way_out = f"none of their {len(parts)} segments has {min_steps} checkpoints"
    else:
        chosen = long_enough[-1]
        which = "" if chosen == parts[-1] else f" of at least {min_steps} checkpoints"
        way_out = f"--steps {chosen[0]}:{chosen[-1]} stays inside their last segment{which}"
    return (
        f"steps {steps[0]} to {steps[-1]} cross {crossed} extrapolated and not trained, so "
        f"{consequence}; {way_out}",
    )
