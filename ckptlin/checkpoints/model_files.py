"""Which files of a directory are the model: one safetensors file, or the shards that an index names.

The choice follows transformers: ``model.safetensors`` if it is there, also beside an index; else the shards
of ``model.safetensors.index.json``.  Beyond that, a directory without either is taken when there is no doubt:
it holds exactly one safetensors file, or one complete set named ``NAME-00001-of-00003.safetensors``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptlin.checkpoints.locations import Location, lexists
from ckptlin.checkpoints.messages import name_some
from ckptlin.errors import CheckpointNotFoundError, IncompleteCheckpointError, MalformedCheckpointError

__all__ = [
    "INDEX_NAME",
    "SINGLE_NAME",
    "ModelFiles",
    "find_model_files",
    "has_weights",
    "other_format",
    "read_json",
]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.safetensors")
_ADAPTER = re.compile(r"adapter_model.*\.safetensors")

# Glob in the directory, what it is, how to convert it.
_OTHER_FORMATS = (
    (
        "adapter_model*",
        "a PEFT adapter, not a whole model",
        "merge it into its base model (peft's `merge_and_unload`) and save that",
    ),
    (
        "model_world_size_*_rank_*.pt",
        "verl's FSDP shards",
        "convert them to safetensors with `python -m verl.model_merger merge --backend fsdp`",
    ),
    ("*.distcp", "a torch distributed checkpoint (DCP)", "convert it to safetensors"),
    (
        "pytorch_model_fsdp_*/*.distcp",
        "a sharded FSDP checkpoint (DCP)",
        "convert it to safetensors with `accelerate merge-weights`",
    ),
    (
        "mp_rank_*_model_states.pt",
        "a DeepSpeed checkpoint",
        "convert it to safetensors with its `zero_to_fp32.py`",
    ),
    (
        "zero_pp_rank_*_model_states.pt",
        "a DeepSpeed checkpoint",
        "convert it to safetensors with its `zero_to_fp32.py`",
    ),
    (
        "pytorch_model*.bin",
        "pickled PyTorch weights",
        "convert them to safetensors: load them with `from_pretrained` and `save_pretrained` them",
    ),
    ("*.gguf", "a GGUF file", "use the safetensors checkpoint that it was made from"),
    ("*.pt", "pickled PyTorch weights", "convert them to safetensors"),
    ("*.pth", "pickled PyTorch weights", "convert them to safetensors"),
)
# Files of the same kinds that hold no weights: optimizer, scheduler, random and data loader states.
_STATE_FILE = re.compile(r"(?:sched|scaler|rng|extra_state|random_state|data|sampler|train).*|.*optim.*")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model.

    Attributes
    ----------
    directory : Path or UrlPath
    names : tuple of str
        Weight files, sorted.
    weight_map : mapping of str to str, or None
        The index's tensor names and files; None without an index.
    """

    directory: Location
    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None


def find_model_files(path: Location) -> ModelFiles:
    """Find the weight files of a directory, or accept a safetensors file itself.

    Raises
    ------
    CheckpointNotFoundError
        If there is nothing at the path, no weights, or only weights of another format (named).
    IncompleteCheckpointError
        If shards that the index or the files' own names call for are not there.
    MalformedCheckpointError
        If the index cannot be read or points outside the directory, or nothing says which of several
        files are the model.
    """
    if path.is_file():
        return _accept_file(path)
    if not path.is_dir():
        raise CheckpointNotFoundError(f"{path} does not exist; give the directory of a checkpoint")
    if (path / SINGLE_NAME).is_file():
        return ModelFiles(path, (SINGLE_NAME,))
    if (path / SINGLE_NAME).is_symlink():
        raise IncompleteCheckpointError(
            f"{path / SINGLE_NAME} is a link to a file that is gone; download or save the checkpoint again"
        )
    if lexists(path / INDEX_NAME):
        return _follow_index(path)
    names = _weight_names(path)
    if not names:
        raise CheckpointNotFoundError(_explain_absence(path))
    return _follow_names(path, names)


def has_weights(directory: Location) -> bool:
    """Tell whether a directory holds, or claims to hold, a model in safetensors files; reads no file."""
    return lexists(directory / INDEX_NAME) or bool(_weight_names(directory))


def other_format(directory: Location) -> tuple[str, str] | None:
    """Say which weights of a format that ckptlin does not read a directory holds, and what to do.

    Returns
    -------
    tuple of (str, str), or None
        Such as ``("pickled PyTorch weights (pytorch_model.bin)", "convert them to safetensors: ...")``.
    """
    for pattern, what, remedy in _OTHER_FORMATS:
        found = sorted(p.name for p in directory.glob(pattern) if not _STATE_FILE.fullmatch(p.name))
        if found:
            return f"{what} ({found[0]})", remedy
    return None


def read_json(path: Location) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    MalformedCheckpointError
        If the file is not valid JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpointError(
            f"{path} is not valid JSON ({error}); save or download the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise MalformedCheckpointError(
            f"{path} holds a JSON {type(content).__name__} where an object is expected; "
            "save or download the checkpoint again"
        )
    return content


def _weight_names(directory: Location) -> list[str]:
    """List safetensors files, dangling links included; adapters and hidden files are no model."""
    if not directory.is_dir():
        return []
    return sorted(
        entry.name
        for entry in directory.iterdir()
        if entry.suffix == ".safetensors"
        and not entry.name.startswith(".")
        and not _ADAPTER.fullmatch(entry.name)
        and not entry.is_dir()
    )


def _accept_file(path: Location) -> ModelFiles:
    if path.suffix != ".safetensors":
        raise CheckpointNotFoundError(
            f"{path} is not a safetensors file; give a checkpoint's directory or its .safetensors file"
        )
    if _ADAPTER.fullmatch(path.name):
        raise CheckpointNotFoundError(
            f"{path} is a PEFT adapter, not a whole model; merge it into its base model first"
        )
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard["total"]) != 1:
        raise IncompleteCheckpointError(
            f"{path} is one of {int(shard['total'])} shards of a model; give the directory that holds them"
        )
    return ModelFiles(path.parent, (path.name,))


def _follow_index(directory: Location) -> ModelFiles:
    index = directory / INDEX_NAME
    if not index.is_file():
        raise IncompleteCheckpointError(
            f"{index} is a link to a file that is gone; download or save the checkpoint again"
        )
    weight_map = read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise MalformedCheckpointError(
            f"{index} has no `weight_map` from tensor names to file names; "
            "save or download the checkpoint again"
        )
    names = sorted(set(weight_map.values()))
    for name in names:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise MalformedCheckpointError(
                f"{index} names the file {name!r}, which points outside its directory, and is refused; "
                "shards must lie beside their index"
            )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise IncompleteCheckpointError(
            f"{directory} lacks {len(missing)} of the {len(names)} shards that {INDEX_NAME} names: "
            f"{name_some(missing)}; wait until they are written, restore them, or leave this checkpoint out"
        )
    return ModelFiles(directory, tuple(names), weight_map)


def _follow_names(directory: Location, names: list[str]) -> ModelFiles:
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    sets = {(shard["stem"], int(shard["total"])) for shard in shards}
    if len(sets) == 1 and len(shards) == len(names):
        (stem, total) = sets.pop()
        wanted = {f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)}
        missing = sorted(wanted - {name for name in names if (directory / name).is_file()})
        if missing:
            raise IncompleteCheckpointError(
                f"{directory} lacks {len(missing)} of {total} shards: {name_some(missing)}; "
                "wait until they are written, restore them, or leave this checkpoint out"
            )
        if extra := sorted(set(names) - wanted):
            raise MalformedCheckpointError(
                f"{directory} holds {name_some(extra)}, beyond the {total} shards that the names speak of; "
                "move what does not belong to the model elsewhere"
            )
    elif len(names) > 1:
        raise MalformedCheckpointError(
            f"{directory} holds {len(names)} safetensors files ({name_some(names)}) and no {INDEX_NAME} "
            "that says which of them are the model; give one .safetensors file, or move the others elsewhere"
        )
    return ModelFiles(directory, tuple(names))


def _explain_absence(directory: Location) -> str:
    if found := other_format(directory):
        what, remedy = found
        return f"{directory} holds {what}; ckptlin reads whole models in safetensors: {remedy}"
    return (
        f"{directory} holds no model: neither {SINGLE_NAME}, nor {INDEX_NAME}, nor another .safetensors file; "
        "give the directory that the model was saved to"
    )
