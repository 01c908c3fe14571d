"""A training configuration from a YAML file and from ``key=value`` options, and back to YAML.

Keys are the fields of `TrainConfig`, sections nested; an option names its section by dots, as in
``optimizer.lr=1e-5``.
"""

import contextlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ckptlin.errors import InputError
from ckptlin.rl.config import TrainConfig

__all__ = ["config_from_dict", "config_to_yaml", "load_config"]


def load_config(
    path: Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    with_extra: bool = False,
) -> TrainConfig:
    """Read a configuration.

    Parameters
    ----------
    path : Path, optional
        A YAML file; without one the defaults hold.
    settings : mapping of str to value, optional
        Values by dotted name, after the file.
    overrides : sequence of str
        ``key=value``, after both; values are read as YAML.
    with_extra : bool
        Whether RL-Extra is asked for: ``extra`` then has its defaults where nothing is said of it.  If not,
        an ``extra`` in the file is left out.

    Raises
    ------
    InputError
        If the file is no mapping, a key is unknown, or a value is of the wrong type or out of range.
    """
    import yaml

    data: dict[str, Any] = {}
    where = "the options"
    if path is not None:
        where = f"{path} and the options" if settings or overrides else str(path)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"there is no configuration {path}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"{path} holds a {type(loaded).__name__}, but a configuration maps keys to values")
        data = loaded or {}
    if not with_extra:
        data = {key: value for key, value in data.items() if key != "extra"}
    elif data.get("extra") is None:
        data = data | {"extra": {}}
    for name, value in (settings or {}).items():
        data = _with(data, name.split("."), value, name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"`{override}` is no setting; write it as key=value, such as optimizer.lr=1e-5")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        data = _with(data, key.strip().split("."), value, override)
    return config_from_dict(data, where)


def config_from_dict(data: Mapping[str, Any], where: str = "the configuration") -> TrainConfig:
    """Make a configuration of plain data, as of `TrainConfig.to_dict`; `InputError` as in `load_config`."""
    config: TrainConfig = _build(TrainConfig, data, "", where)
    return config


def config_to_yaml(config: TrainConfig) -> str:
    """Write a configuration as YAML that `load_config` reads back."""
    import yaml

    data = config.to_dict()
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != data:  # PyYAML reads some separators, such as U+0085, back as spaces
        text = yaml.safe_dump(data, sort_keys=False)
    return text


def _with(data: Mapping[str, Any], keys: list[str], value: object, override: str) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**data, head: value}
    inner = data.get(head)
    if inner is not None and not isinstance(inner, Mapping):
        raise InputError(f"`{override}`: {head} is a value, not a section")
    return {**data, head: _with(inner or {}, rest, value, override)}


def _build(kind: type[Any], data: Mapping[str, Any], prefix: str, where: str) -> Any:
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key in data:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"; did you mean `{prefix}{near[0]}`?" if near else f"; there are {', '.join(known)}"
            raise InputError(f"{where}: no setting `{prefix}{key}`{hint}")
    values = {name: _value(hints[name], data[name], f"{prefix}{name}", where) for name in known if name in data}
    return kind(**values)


def _value(hint: Any, value: Any, name: str, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: {name} is {value!r}, but is a section with settings of its own")
        return _build(hint, value, f"{name}.", where)
    kind = get_origin(hint) or hint
    if kind is float and isinstance(value, str):
        # YAML 1.1 takes 1e-6, without a point, for a text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: {name} is {value!r}, but must be of type {kind.__name__}")
    return value
