"""Whether the checkpoints of a run are of one model: the same tensors, shapes and element types."""

from collections.abc import Sequence

from ckptlin.checkpoints.messages import name_some
from ckptlin.checkpoints.run import StepCheckpoint
from ckptlin.errors import CheckpointMismatchError

__all__ = ["check_consistent"]


def check_consistent(checkpoints: Sequence[StepCheckpoint]) -> None:
    """Compare every checkpoint with the first; order of files and tensors, and sharding, may differ.

    Raises
    ------
    CheckpointMismatchError
        If tensors are missing or new, or one has another shape or dtype.  The first difference is named.
    """
    if not checkpoints:
        return
    first, *others = checkpoints
    for other in others:
        for lacking, having in ((other, first), (first, other)):
            _check_names(lacking, having)
        for name, spec in first.checkpoint.tensors.items():
            found = other.checkpoint.tensors[name]
            if found.shape != spec.shape:
                raise CheckpointMismatchError(
                    f"tensor `{name}` in {_name(other)} has shape {found.shape}, but {_name_step(first)} has "
                    f"{spec.shape}; ingest runs of different models into different stores"
                )
            if found.dtype != spec.dtype:
                raise CheckpointMismatchError(
                    f"tensor `{name}` in {_name(other)} has dtype {found.dtype.zarr}, "
                    f"but {_name_step(first)} has {spec.dtype.zarr}; save all checkpoints of a run in one dtype"
                )


def _check_names(lacking: StepCheckpoint, having: StepCheckpoint) -> None:
    missing = [name for name in having.checkpoint.tensors if name not in lacking.checkpoint.tensors]
    if not missing:
        return
    tied = [name for name in missing if name in lacking.checkpoint.tied]
    if tied:
        advice = (
            f"`{tied[0]}` is tied to `{lacking.checkpoint.tied[tied[0]]}` there: save all checkpoints of a run "
            "with their weights tied, or all untied"
        )
    else:
        advice = "ingest runs of different models into different stores"
    noun = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
    raise CheckpointMismatchError(
        f"{_name(lacking)} lacks {noun} that {_name_step(having)} has: {name_some(missing)}; {advice}"
    )


def _name(item: StepCheckpoint) -> str:
    return f"checkpoint {_name_step(item)}"


def _name_step(item: StepCheckpoint) -> str:
    return f"step {item.step} ({item.path})"
