"""Methods by name, and what ``--method NAME:KEY=VALUE,...`` means."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points

from ckptlin.errors import InputError, SelectionError
from ckptlin.methods.base import MethodEntry, MethodSpec, Parameter
from ckptlin.methods.damped import damped
from ckptlin.methods.dmd import dmd
from ckptlin.methods.ema import bema, ema
from ckptlin.methods.kriging import kriging
from ckptlin.methods.lawa import lawa
from ckptlin.methods.ols import anchored, ols
from ckptlin.methods.persistence import persistence
from ckptlin.methods.polynomial import polynomial
from ckptlin.methods.relex import relex
from ckptlin.methods.rre import rre
from ckptlin.methods.two_point import two_point
from ckptlin.methods.wls import wls, wls_anchored

__all__ = ["METHODS", "all_methods", "get_method", "parse_method", "parse_methods", "split_methods"]

_GROUP = "ckptlin.methods"

# Those of ckptlin itself; `all_methods` has those of other packages too.
METHODS: Mapping[str, MethodEntry] = {
    entry.name: entry
    for entry in (
        MethodEntry("ols", ols, "the least-squares line through all checkpoints"),
        MethodEntry(
            "two-point", two_point, "the line through two checkpoints, as in the paper", keep=("norm",)
        ),
        MethodEntry("anchored", anchored, "from the last checkpoint on with the least-squares slope"),
        MethodEntry(
            "wls",
            wls,
            "the least-squares line, late checkpoints counting more",
            (Parameter("decay", 0.7, "weight of a checkpoint, relative to the next", 0.01, 1.0),),
        ),
        MethodEntry(
            "wls-anchored",
            wls_anchored,
            "from the last checkpoint on with the slope of wls",
            (Parameter("decay", 0.7, "weight of a checkpoint, relative to the next", 0.01, 1.0),),
        ),
        MethodEntry(
            "polynomial",
            polynomial,
            "the least-squares polynomial through all checkpoints",
            (Parameter("degree", 2, "of the polynomial", 1, 10),),
            min_steps=lambda degree: degree + 1,
        ),
        MethodEntry(
            "relex",
            relex,
            "the least-squares line, along the first principal directions of each tensor",
            (Parameter("rank", 1, "number of directions", 1),),
            min_steps=lambda rank: rank + 1,
            needs_gram=True,
        ),
        MethodEntry(
            "dmd",
            dmd,
            "from the last checkpoint on with updates that follow a linear recurrence",
            (Parameter("rank", 1, "of the recurrence", 1),),
            min_steps=lambda rank: rank + 2,
            needs_gram=True,
        ),
        MethodEntry(
            "damped",
            damped,
            "as much of another method's move as such moves were worth in the run's past",
            (
                Parameter("ridge", 1.0, "pull towards the whole model's factor, in pairs of checkpoints", 0.0),
                Parameter("width", 0.5, "how alike the reach of pairs that count has to be, in log", 0.01),
                Parameter("base", "wls-anchored", "the other method"),
            ),
            needs_gram=True,
        ),
        MethodEntry(
            "kriging",
            kriging,
            "drift, wandering velocity and noise, told apart by the likelihood of each tensor's past",
            (Parameter("evidence", 30.0, "parameters of a tensor that count as independent", 0.0, 1e6),),
            needs_gram=True,
            is_linear=False,
        ),
        MethodEntry(
            "rre",
            rre,
            "the limit that the checkpoints converge to, by reduced-rank extrapolation",
            (Parameter("ridge", 1e-8, "of the least squares, relative", 1e-14, 1.0),),
            min_steps=3,
            needs_gram=True,
            is_linear=False,
        ),
        MethodEntry(
            "lawa",
            lawa,
            "the mean of the last k checkpoints",
            (Parameter("k", 3, "number of checkpoints", 1),),
            min_steps=lambda k: k,
            is_linear=False,
        ),
        MethodEntry(
            "ema",
            ema,
            "the exponential moving average of the checkpoints",
            (Parameter("decay", 0.7, "weight of a checkpoint, relative to the next", 0.0, 0.9999),),
            min_steps=1,
            is_linear=False,
        ),
        MethodEntry(
            "bema",
            bema,
            "the moving average with its lag corrected",
            (
                Parameter("ema_power", 0.5, "how fast the weight of a checkpoint falls", 0.0),
                Parameter("bias_power", 0.2, "how fast the correction falls", 0.0),
                Parameter("lag", 10.0, "checkpoints before either falls", 1.0),
                Parameter("multiplier", 1.0, "of the number of checkpoints", 0.0),
            ),
            min_steps=1,
            is_linear=False,
        ),
        MethodEntry(
            "persistence", persistence, "the last checkpoint, the baseline", min_steps=1, is_linear=False
        ),
    )
}


@cache
def all_methods() -> Mapping[str, MethodEntry]:
    """Return every method by name: ckptlin's own, then those that installed packages add.

    A package adds a method by an entry point in the group ``ckptlin.methods`` that names a `MethodEntry`.

    Raises
    ------
    InputError
        If an entry point names something else, or takes a name that is taken.
    """
    found = dict(METHODS)
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        entry = point.load()
        if not isinstance(entry, MethodEntry):
            raise InputError(
                f"entry point {point.name} of the group {_GROUP} ({point.value}) is a "
                f"{type(entry).__name__}, no MethodEntry; correct or uninstall the package"
            )
        if entry.name in found:
            raise InputError(
                f"entry point {point.name} of the group {_GROUP} ({point.value}) takes the name of the method "
                f"{entry.name}, which is there already; correct or uninstall the package"
            )
        found[entry.name] = entry
    return found


def get_method(name: str) -> MethodEntry:
    """Look a method up; SelectionError if there is none of that name."""
    entry = METHODS.get(name) or all_methods().get(name)
    if entry is None:
        raise SelectionError(f"there is no method {name!r}; choose one of {', '.join(sorted(all_methods()))}")
    return entry


def parse_method(text: str) -> MethodSpec:
    """Read a method with its parameters: ``NAME`` or ``NAME:KEY=VALUE,...``.

    Parameters that are not named have their defaults.  A parameter that is a method itself takes all that
    follows it: ``damped:base=wls:decay=0.5``.

    Raises
    ------
    SelectionError
        If there is no such method or parameter.
    InputError
        If a value cannot be read, or lies out of bounds.

    Examples
    --------
    >>> str(parse_method("wls:decay=.5")), str(parse_method("damped:base=ols"))
    ('wls:decay=0.5', 'damped:ridge=1,width=0.5,base=ols')
    >>> parse_method("damped:base=ols").short
    'damped:base=ols'
    """
    name, has_parameters, listed = text.strip().partition(":")
    entry = get_method(name)
    known = {parameter.name: parameter for parameter in entry.parameters}
    given: dict[str, int | float | MethodSpec] = {}
    if has_parameters and not listed:
        raise InputError(f"method {text!r} ends with a colon; write NAME or NAME:KEY=VALUE,...")
    while listed:
        key, has_value, rest = listed.partition("=")
        key = key.strip()
        if not has_value:
            raise InputError(f"parameter {key!r} of method {text!r} has no value; write {name}:KEY=VALUE,...")
        if key not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise SelectionError(f"method {name} has no parameter {key!r}; {there}")
        if key in given:
            raise InputError(f"parameter {key!r} stands twice in method {text!r}")
        value, _, listed = (rest, "", "") if isinstance(known[key].default, str) else rest.partition(",")
        given[key] = _read(name, known[key], value.strip())
    for parameter in entry.parameters:
        if parameter.name not in given:
            default = parameter.default
            given[parameter.name] = parse_method(default) if isinstance(default, str) else default
    return MethodSpec(entry, tuple(given[parameter.name] for parameter in entry.parameters))


def split_methods(text: str) -> list[str]:
    """Split a list of methods at its commas, those between parameters left alone.

    Examples
    --------
    >>> split_methods("ols,wls:decay=0.5,lawa:k=3,damped:base=wls:decay=0.9,two-point")
    ['ols', 'wls:decay=0.5', 'lawa:k=3', 'damped:base=wls:decay=0.9', 'two-point']
    """
    parts: list[str] = []
    for piece in text.split(","):
        # `key=value` goes on with the method before it; `name` and `name:key=value` begin another.
        if parts and "=" in piece.partition(":")[0]:
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return [part.strip() for part in parts]


def parse_methods(methods: Iterable[str | MethodSpec]) -> tuple[MethodSpec, ...]:
    """Read several methods, each once, in their order.

    Raises
    ------
    SelectionError, InputError
        As `parse_method`, and if there is none.
    """
    specs = dict.fromkeys(m if isinstance(m, MethodSpec) else parse_method(m) for m in methods)
    if not specs:
        raise InputError("no method was given; `ckptlin methods` lists them")
    return tuple(specs)


def _read(method: str, parameter: Parameter, text: str) -> int | float | MethodSpec:
    if isinstance(parameter.default, str):
        return parse_method(text)
    kind = type(parameter.default)
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{parameter.name}={text} of method {method} is not {what}") from None
    if not parameter.low <= value <= parameter.high:  # NaN is out of bounds too
        between = f"between {parameter.low:g} and {parameter.high:g}"
        at_least = f"at least {parameter.low:g}"
        bounds = at_least if parameter.high == float("inf") else between
        raise InputError(f"{parameter.name}={text} of method {method} must be {bounds}")
    return value
