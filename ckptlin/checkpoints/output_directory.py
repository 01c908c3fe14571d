"""Which existing directory a checkpoint may be written to: what is overwritten is lost.

An empty directory is free.  With the user's word, a directory goes that holds a model (``config.json``,
``ckptlin.json`` or safetensors files) and no directory besides ``additional_chat_templates``.  A run whose
final copy lies at its root, a clone with its ``.git``, or a home directory is never replaced.
"""

import os
from pathlib import Path

from ckptlin.checkpoints.sidecars import SIDECAR_DIRECTORY
from ckptlin.errors import OutputExistsError

__all__ = ["already_there", "check_output"]

_MARKS_OF_A_MODEL = ("config.json", "ckptlin.json", "*.safetensors")


def already_there(out_dir: Path) -> OutputExistsError:
    """Say that the output is there already."""
    return OutputExistsError(f"{out_dir} is there already; give another directory, or --overwrite")


def check_output(target: Path, out_dir: Path, *, overwrite: bool) -> None:
    """Accept a directory for output, or say why not.

    Parameters
    ----------
    target : Path
        The directory itself, links resolved.
    out_dir : Path
        The user's name for it, for messages.
    overwrite : bool
        Whether the user agreed to lose what is there.

    Raises
    ------
    OutputExistsError
        If something is there and the user did not agree, or it is not a model alone.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputExistsError(f"{out_dir} is there already and is not a directory; give another name")
    entries = list(target.iterdir())
    if not entries:
        return
    if not overwrite:
        raise already_there(out_dir)
    if not any(entry.match(mark) for entry in entries for mark in _MARKS_OF_A_MODEL):
        raise OutputExistsError(
            f"{out_dir} is not overwritten, because it holds no model but {entries[0].name}; "
            "give another directory"
        )
    inside = sorted(entry.name for entry in entries if entry.is_dir() and entry.name != SIDECAR_DIRECTORY)
    if inside:
        raise OutputExistsError(
            f"{out_dir} is not overwritten, because it holds the directory {inside[0]}, which would be lost; "
            "give another directory, or move that one elsewhere"
        )
