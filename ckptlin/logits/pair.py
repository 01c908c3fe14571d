"""Two checkpoints whose logits are mixed: what must hold of them, and the directory that stands for both.

The directory has no weights.  ``config.json`` names the two checkpoints by absolute paths, with α and, as
``text_config``, all that the second one's configuration says; generation configuration, tokenizer and chat
template are copies of the second one's.  ``model.safetensors`` is a header without tensors, so that whatever
looks for a model finds one; its metadata names the pair and the weights that it was made of, which tells two
pairs apart by the content of their files.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptlin._version import __version__
from ckptlin.atomic import partial_name, replace_directory
from ckptlin.checkpoints import Checkpoint, Run, build_header, discover
from ckptlin.checkpoints.locations import UrlPath, location_of
from ckptlin.checkpoints.model_files import find_model_files, read_json
from ckptlin.checkpoints.output_directory import check_output
from ckptlin.checkpoints.run import PROVENANCE_NAME, step_of
from ckptlin.errors import CheckpointNotFoundError, InputError

__all__ = ["ARCHITECTURE", "MODEL_TYPE", "LogitsPair", "is_pair", "make_pair", "read_pair", "write_pair"]

MODEL_TYPE = "ckptlin_logits_extrapolation"
ARCHITECTURE = "CkptlinLogitsExtrapolationForCausalLM"

_EXPLICIT = re.compile(r"([0-9]+)=(.+)", re.DOTALL)
# What checkpoints of one model may differ in: how they were saved, and what generation is told apart from them.
_HOW_SAVED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_INCIDENTAL = frozenset((*_HOW_SAVED, *_SPECIAL_TOKENS))
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class LogitsPair:
    """Two checkpoints of one model, whose logits are mixed as l₁ + α(l₂ − l₁).

    Attributes
    ----------
    base, second : Path
        Directories of their weights, absolute.
    alpha : float
        0 is the base, 1 the second, more lies beyond it.
    steps : tuple of int, optional
        Of the two, where both are known.
    target : int, optional
        Step that ``alpha`` was computed for.
    """

    base: Path
    second: Path
    alpha: float
    steps: tuple[int, int] | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha is {self.alpha}; it must be a finite number")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "base": str(self.base),
            "second": str(self.second),
            "alpha": self.alpha,
            "steps": None if self.steps is None else list(self.steps),
            "target": self.target,
        }


def make_pair(
    base: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    target: int | None = None,
    alpha: float | None = None,
) -> LogitsPair:
    """Make a pair of two checkpoints, after a look at whether they fit together.

    Parameters
    ----------
    base, second : path-like or ``"STEP=PATH"``
        Checkpoints on this machine's disks.  The step is what their name, ``trainer_state.json`` or
        ``ckptlin.json`` says.
    target : int, optional
        Step to extrapolate to: α = (target − s₁) / (s₂ − s₁) (arXiv 2601.04537).
    alpha : float, optional
        Instead of it.  Given both, ``alpha`` counts, and the pair names no target.

    Raises
    ------
    InputError
        If neither is given, a step is needed and cannot be told, both steps are the same, or the checkpoints
        differ in architecture, vocabulary or the shape of a tensor.
    CheckpointError
        If a checkpoint is not there or damaged.
    """
    if target is None and alpha is None:
        raise InputError("neither a target step nor alpha was given; one of them says how far to extrapolate")
    if target is not None and target < 0:
        raise InputError(f"target step {target} is negative")
    first_step, last_step = _step(base), _step(second)
    steps = None if first_step is None or last_step is None else (first_step, last_step)
    if alpha is None:
        if steps is None:
            unknown = base if first_step is None else second
            raise InputError(
                f"the step of {os.fspath(unknown)} cannot be told, neither by its name nor by a "
                "trainer_state.json; write it as STEP=PATH, or give alpha instead of a target step"
            )
        if steps[0] == steps[1]:
            raise InputError(
                f"both checkpoints are of step {steps[0]}, and no line goes through one point; give two steps, "
                "or alpha instead of a target step"
            )
        alpha = ((target or 0) - steps[0]) / (steps[1] - steps[0])
    else:
        target = None
    with _open(base) as first, _open(second) as last:
        _check_fit(first.checkpoints[0].checkpoint, last.checkpoints[0].checkpoint)
        return LogitsPair(_directory(first), _directory(last), float(alpha), steps, target)


def is_pair(directory: str | os.PathLike[str]) -> bool:
    """Tell whether a directory stands for a pair."""
    path = Path(directory) / "config.json"
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def write_pair(pair: LogitsPair, directory: Path, *, overwrite: bool = False) -> Path:
    """Write the directory that engines load, and that vLLM serves.

    Parameters
    ----------
    pair : LogitsPair
    directory : Path
    overwrite : bool
        Replace a model that is there.

    Raises
    ------
    InputError
        If a checkpoint has no ``config.json``.
    OutputExistsError
        If something is there that may not be replaced.
    CheckpointError
        If a checkpoint is not there any more, or damaged.
    """
    target = Path(os.path.realpath(directory))
    check_output(target, directory, overwrite=overwrite)
    sidecars: dict[str, Path] = {}
    for path in (pair.second, pair.base):
        with _open(path) as run:
            for name, sidecar in run.checkpoints[0].checkpoint.sidecars.items():
                if name not in sidecars and not name.endswith(".index.json"):
                    sidecars[name] = Path(str(sidecar))
    config = read_json(sidecars.pop("config.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(target)
    partial.mkdir()
    try:
        for name, path in sidecars.items():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)
        (partial / "config.json").write_text(json.dumps(_config_of(pair, config), indent=2) + "\n")
        header = build_header([], {"format": "pt", "ckptlin": json.dumps(_identity(pair))})
        (partial / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        if target.is_dir():
            replace_directory(partial, target)
        else:
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def read_pair(directory: str | os.PathLike[str]) -> LogitsPair:
    """Read a pair's directory.

    Raises
    ------
    InputError
        If it is none.
    CheckpointNotFoundError
        If a checkpoint has gone.
    """
    path = Path(directory) / "config.json"
    if not is_pair(directory):
        raise InputError(f"{directory} is no pair of checkpoints; `ckptlin generate --write-pair` writes one")
    record = read_json(path)
    try:
        steps = record.get("steps")
        pair = LogitsPair(
            Path(record["base"]),
            Path(record["second"]),
            float(record["alpha"]),
            None if steps is None else (int(steps[0]), int(steps[1])),
            record.get("target"),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged: {error!r}; write the pair anew") from None
    for checkpoint in (pair.base, pair.second):
        if not checkpoint.is_dir():
            raise CheckpointNotFoundError(
                f"{checkpoint}, of the pair {directory}, is not there any more; put it back, or write the pair "
                "anew"
            )
    return pair


def _split(item: str | os.PathLike[str]) -> tuple[int | None, str]:
    """Return the step that a user wrote before the path, and the path."""
    text = os.fspath(item)
    match = _EXPLICIT.fullmatch(text)
    return (int(match[1]), match[2]) if match else (None, text)


def _step(item: str | os.PathLike[str]) -> int | None:
    """Return the step of a checkpoint, None where nothing says it."""
    step, text = _split(item)
    if step is not None:
        return step
    path = Path(text)
    for found in (
        _entry(path / PROVENANCE_NAME, "step"),
        step_of(path),
        _entry(path / "trainer_state.json", "global_step"),
    ):
        if found is not None:
            return found
    return None


def _entry(path: Path, key: str) -> int | None:
    found = read_json(path).get(key) if path.is_file() else None
    return found if isinstance(found, int) else None


def _open(item: str | os.PathLike[str]) -> Run:
    """Open one checkpoint, as a run of one; its step does not matter here."""
    _, text = _split(item)
    if isinstance(location_of(text), UrlPath):
        raise InputError(f"checkpoint {text} lies at a URL, and engines load from a disk; copy it first")
    return discover([f"0={text}"])


def _directory(run: Run) -> Path:
    path = Path(str(run.checkpoints[0].path)).absolute()
    if not path.is_dir():
        raise InputError(f"checkpoint {path} is a file; engines load a directory with config.json")
    return path


def _check_fit(first: Checkpoint, last: Checkpoint) -> None:
    """Refuse checkpoints whose logits do not stand for the same tokens, or that one engine cannot hold."""
    configs = []
    for checkpoint in (first, last):
        if checkpoint.config is None:
            raise InputError(f"{checkpoint!r} has no config.json, which an engine needs to build the model")
        if "quantization_config" in checkpoint.config:
            raise InputError(f"{checkpoint!r} is quantised; logits are extrapolated from models that are not")
        if checkpoint.config.get("model_type") == MODEL_TYPE:
            raise InputError(f"{checkpoint!r} is a pair itself; give the checkpoints that it is made of")
        configs.append({name: v for name, v in checkpoint.config.items() if name not in _INCIDENTAL})
    ours, theirs = configs
    # What says most comes first.
    names = dict.fromkeys(["model_type", "architectures", "vocab_size", *sorted({*ours, *theirs})])
    for name in names:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"the checkpoints are of different models: {name} is {ours.get(name)!r} in {first!r}, and "
                f"{theirs.get(name)!r} in {last!r}; both must be checkpoints of one run"
            )
    shapes = [{name: spec.shape for name, spec in c.tensors.items()} for c in (first, last)]
    for name in sorted({*shapes[0], *shapes[1]}):
        if shapes[0].get(name) != shapes[1].get(name):
            raise InputError(
                f"the checkpoints are of different models: tensor `{name}` has shape {shapes[0].get(name)} in "
                f"{first!r}, and {shapes[1].get(name)} in {last!r}"
            )
    _check_tokenizers(first, last)


def _check_tokenizers(first: Checkpoint, last: Checkpoint) -> None:
    found = []
    for checkpoint in (first, last):
        names = [name for name in _TOKENIZER if name in checkpoint.sidecars]
        if not names:
            return  # an RL framework that saves weights alone; the other one's tokenizer serves both
        found.append(Path(str(checkpoint.sidecars[names[0]])))
    if found[0].name == found[1].name and found[0].read_bytes() == found[1].read_bytes():
        return
    ours, theirs = (_vocabulary(path.parent) for path in found)
    if ours != theirs:
        differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
        raise InputError(
            f"the tokenizers in {found[0].parent} and {found[1].parent} differ in {len(differing)} tokens, "
            f"{differing[0]!r} among them; logits of different tokens cannot be mixed"
        )


def _vocabulary(directory: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    try:
        vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(directory).get_vocab()
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    return vocabulary


def _config_of(pair: LogitsPair, config: Mapping[str, Any]) -> dict[str, Any]:
    at_top = ("dtype", "torch_dtype", "tie_word_embeddings", *_SPECIAL_TOKENS)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **pair.to_dict(),
        **{name: config[name] for name in at_top if name in config},
        "text_config": dict(config),
        "ckptlin_version": __version__,
    }


def _identity(pair: LogitsPair) -> dict[str, Any]:
    """Return what tells pairs apart without reading weights: the two models' files, and α."""
    files = {
        str(path): {
            name: [(path / name).stat().st_size, (path / name).stat().st_mtime_ns]
            for name in find_model_files(path).names
        }
        for path in (pair.base, pair.second)
    }
    return pair.to_dict() | {"files": files}
