"""The directory of a training run: what lies where, and how it is written so that a kill loses nothing.

::

    RUN/ckptlin-train.json    configuration, versions, jumps; what `ckptlin.segments` reads
    RUN/config.yaml           the configuration as it can be given again
    RUN/checkpoint-N/         weights in float32, configuration and tokenizer, N the virtual step
    RUN/resume/STEP-PHASE/    the last resume point; PHASE is 0 before a jump and 1 after it
    RUN/log.csv, tensorboard/ a row a step

Checkpoints and resume points are written under another name, synced and renamed.  What counts is the resume
point: what was written after it is made again.
"""

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptlin._version import __version__
from ckptlin.atomic import is_disk_full, partial_name, replace_directory, sync_directory, write_file
from ckptlin.directory_lock import directory_lock
from ckptlin.errors import CheckpointError, DiskFullError, InputError, OutputExistsError
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.config_file import config_from_dict, config_to_yaml
from ckptlin.rl.state import STATE_NAME, JumpRecord, TrainState
from ckptlin.segments import TRAIN_RECORD_NAME

__all__ = ["RunDirectory", "find_run", "link_model", "open_run", "share_file"]

_RESUME = "resume"
_STATE = re.compile(r"([0-9]+)-([01])")
_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")
# Names under which files and directories are written before they get their own.
_PARTIAL = re.compile(r"\..+\.(partial|(partial|replaced)-[0-9a-f]+)")
# What may change from one start to the next without another run coming out.
_FREE = ("steps", "log.", "stop.", "sampling.gpu_memory", "sampling.server_url", "verl.")
# What file systems answer that have no hard links (exFAT, SMB, some FUSE mounts), or have no more of them.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})
# A disk with less than this left is full for a checkpoint.
_FULL_BYTES = 1 << 20
_WEIGHTS = re.compile(r"model(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?")
_SIDECARS = re.compile(r"(?!ckptlin|trainer_state|state\.json|.*\.safetensors).*\.(json|jinja|model|txt)")


class RunDirectory:
    """A run's directory, locked while it is open.

    Parameters
    ----------
    path : Path
    record : dict
        Content of ``ckptlin-train.json``.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        self._record = dict(record)

    @property
    def record(self) -> dict[str, Any]:
        """Content of ``ckptlin-train.json``."""
        return dict(self._record)

    def checkpoint(self, virtual_step: int) -> Path:
        """Return where the checkpoint of a virtual step lies, or will."""
        return self.path / f"checkpoint-{virtual_step}"

    @property
    def log_path(self) -> Path:
        """``log.csv``."""
        return self.path / "log.csv"

    @property
    def tensorboard_path(self) -> Path:
        """``tensorboard/``."""
        return self.path / "tensorboard"

    def note(self, **changes: Any) -> None:
        """Change keys of the record, on disk too."""
        self._record |= changes
        write_file(self.path / TRAIN_RECORD_NAME, _as_json(self._record))

    def note_jump(self, jump: JumpRecord, *, undone: bool) -> None:
        """Enter a jump in the record; one that is there already, from before a kill, is replaced."""
        key = "jumps_undone" if undone else "jumps"
        others = {
            name: [entry for entry in self._record[name] if entry["step"] != jump.step]
            for name in ("jumps", "jumps_undone")
        }
        self.note(**others | {key: [*others[key], jump.to_dict()]})

    def latest(self) -> TrainState | None:
        """Return the last resume point, or None before the first."""
        found = []
        for path in (self.path / _RESUME).glob("*"):
            if match := _STATE.fullmatch(path.name):
                found.append(((int(match[1]), int(match[2])), path))
        if not found:
            return None
        path = max(found)[1]
        try:
            data = json.loads((path / STATE_NAME).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / STATE_NAME} cannot be read: {error}") from None
        return TrainState.from_dict(path, data)

    def rewind(self, state: TrainState) -> None:
        """Remove what lies beyond a resume point."""
        for path in self.path.iterdir():
            match = _CHECKPOINT.fullmatch(path.name)
            if match and int(match[1]) > state.virtual_step:
                shutil.rmtree(path)
        for path in (self.path / _RESUME).iterdir():
            if path != state.path:
                shutil.rmtree(path)
        kept = {
            name: [entry for entry in self._record[name] if _is_before(entry, state)]
            for name in ("jumps", "jumps_undone")
        }
        if any(kept[name] != self._record[name] for name in kept):
            self.note(**kept)

    @contextmanager
    def new_checkpoint(self, virtual_step: int, *, is_main: bool = True) -> Iterator[Path]:
        """Give a directory to write a checkpoint into; it is renamed to its name when all is written.

        With several processes each of them enters; only the main one makes, syncs and renames.
        """
        with _written(self.checkpoint(virtual_step), is_main) as path:
            yield path

    @contextmanager
    def new_state(self, state: TrainState, *, phase: int = 0, is_main: bool = True) -> Iterator[Path]:
        """Give a directory to write a resume point into; ``state.json`` is added, and older ones go."""
        target = self.state_path(state, phase)
        with _written(target, is_main) as path:
            yield path
            if is_main:
                (path / STATE_NAME).write_bytes(_as_json(state.to_dict()))
        if is_main:
            for other in (self.path / _RESUME).iterdir():
                if other != target:
                    shutil.rmtree(other)

    def state_path(self, state: TrainState, phase: int = 0) -> Path:
        """Return where the resume point of a state lies."""
        return self.path / _RESUME / f"{state.step}-{phase}"

    def begin(self, save_model: Callable[[Path], None]) -> TrainState:
        """Write checkpoint 0, by what saves model and tokenizer into a directory, and its resume point."""
        with self.new_checkpoint(0) as path:
            save_model(path)
        state = TrainState(Path())
        state = replace(state, path=self.state_path(state))
        with self.new_state(state) as path:
            link_model(self.checkpoint(0), path)
        return state

    def after_jump(self, state: TrainState, **changes: Any) -> TrainState:
        """Write the resume point after a leg: weights of the checkpoint it is at now, the rest as it was.

        Files are linked where the file system can, and not copied.
        """
        moved = replace(state, **changes)
        moved = replace(moved, path=self.state_path(moved, 1))
        with self.new_state(moved, phase=1) as path:
            for file in state.path.rglob("*"):
                place = file.relative_to(state.path)
                if file.is_dir():
                    (path / place).mkdir(exist_ok=True)
                elif file.name != STATE_NAME and not _WEIGHTS.fullmatch(file.name):
                    share_file(file, path / place)
            _link(self.checkpoint(moved.virtual_step), path, _WEIGHTS)
        return moved


def link_model(source: Path, target: Path) -> None:
    """Link weights, configuration and tokenizer of a checkpoint into another directory."""
    _link(source, target, _WEIGHTS)
    _link(source, target, _SIDECARS)


def share_file(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def _link(source: Path, target: Path, names: re.Pattern[str]) -> None:
    for file in source.iterdir():
        if file.is_file() and names.fullmatch(file.name):
            share_file(file, target / file.name)


def find_run(path: Path, config: TrainConfig) -> RunDirectory | None:
    """Look for a run that a configuration would go on with, without a change to anything; None for a new one.

    Raises
    ------
    OutputExistsError
        If something else than a run is there.
    InputError
        If the run that is there was started with other settings.
    """
    record_path = path / TRAIN_RECORD_NAME
    if not record_path.is_file():
        if not _is_free(path):
            raise OutputExistsError(f"{path} is there already and is no training run; choose another directory")
        return None
    record = _read_record(record_path)
    before = config_from_dict(record["config"], str(record_path))
    # A schedule that falls to zero at the last step is another one if that is another step.
    free = _FREE if config.optimizer.schedule == "constant" else _FREE[1:]
    changed = [name for name in config.differences(before) if not name.startswith(free)]
    if changed:
        raise InputError(
            f"{path} was started with other settings ({', '.join(changed)} differ); go on with those in "
            f"{path / 'config.yaml'}, choose another directory, or start over with --overwrite"
        )
    return RunDirectory(path, record)


@contextmanager
def open_run(
    path: Path,
    config: TrainConfig,
    *,
    overwrite: bool = False,
    is_main: bool = True,
    versions: Mapping[str, str],
) -> Iterator[RunDirectory]:
    """Open a run's directory: a new one, or one of the same configuration that goes on.

    Raises
    ------
    OutputExistsError
        If something else is there.
    InputError
        If the run that is there was started with other settings, or another process trains it.
    """
    if is_main:
        if overwrite and (path / TRAIN_RECORD_NAME).is_file():
            _remove(path)
        find_run(path, config)
        (path / _RESUME).mkdir(parents=True, exist_ok=True)
    with directory_lock(path, "training") if is_main else _nothing():
        if is_main:
            _sweep(path)
            _sweep(path / _RESUME)
        run = find_run(path, config) if is_main else None
        if run is not None:
            run.note(config=config.to_dict(), finished=False)
        else:
            run = RunDirectory(
                path,
                {
                    "created_by": f"ckptlin {__version__}",
                    "config": config.to_dict(),
                    "versions": dict(versions),
                    "finished": False,
                    "jumps": [],
                    "jumps_undone": [],
                },
            )
            if is_main:
                run.note()
        if is_main:
            write_file(path / "config.yaml", config_to_yaml(config).encode())
        yield run


def _remove(path: Path) -> None:
    """Remove a run that nobody is training: seen whole or not at all."""
    with directory_lock(path, "training"):
        path.rename(partial_name(path, "replaced"))
    for former in path.parent.glob(f".{glob.escape(path.name)}.replaced-*"):
        shutil.rmtree(former)


def _is_free(path: Path) -> bool:
    """Tell whether a new run may begin there: nothing is, or what a start leaves that was killed at once."""
    if not path.is_dir():
        return not path.exists()
    resume = path / _RESUME
    if resume.is_dir() and any(resume.iterdir()):
        return False
    return all(item.name in (".lock", _RESUME) or _PARTIAL.fullmatch(item.name) for item in path.iterdir())


def _sweep(directory: Path) -> None:
    """Remove what a killed write has left."""
    for path in directory.iterdir():
        if _PARTIAL.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(record["config"], dict):
            raise TypeError("`config` is no mapping")
        return {**record, **{name: record.get(name, []) for name in ("jumps", "jumps_undone")}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no record of a training run: {error!r}") from None


def _is_before(entry: Mapping[str, Any], state: TrainState) -> bool:
    # A jump at the very step of the resume point belongs to it if that was written after the jump.
    after_jump = state.leg_steps == 0
    return bool(entry["step"] < state.step or (entry["step"] == state.step and after_jump))


@contextmanager
def _written(target: Path, is_main: bool) -> Iterator[Path]:
    """Write a directory under a hidden name, sync it and give it its name."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        yield partial
        if is_main:
            _sync_files(partial)
            if target.exists():
                replace_directory(partial, target)
            else:
                partial.rename(target)
                sync_directory(target.parent)
    except BaseException as error:
        is_full = _says_disk_full(error, target.parent)  # before the space is free again
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        if is_full:
            raise DiskFullError(
                f"the disk is full: {target} could not be written; free some space and run the same "
                "command again, which goes on from the last resume point"
            ) from error
        raise


def _says_disk_full(error: BaseException, directory: Path) -> bool:
    """Tell whether a write failed for want of space, also where a library wraps what the system said."""
    if isinstance(error, OSError):
        return is_disk_full(error)
    # safetensors says "No space left on device (os error 28)", torch anything: "unexpected pos 704 vs 598".
    return "os error 28" in str(error) or (
        isinstance(error, RuntimeError) and shutil.disk_usage(directory).free < _FULL_BYTES
    )


def _sync_files(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(directory)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _as_json(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
