"""Names of tensors: as paths in a store, as layer and module kind, and as patterns match them."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ckptlin.errors import SelectionError

__all__ = ["decode_name", "encode_name", "is_buffer", "layer_index", "matches", "module_kind", "select"]

_RESERVED = frozenset({"", ".", "..", "zarr.json", "step"})
# 255 bytes is the limit of a file name on common file systems; chunk files lie below the name.
_MAX_NAME_BYTES = 255
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)(?:\.|$)")
_BUFFER = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|position_ids|masked_bias|running_mean|running_var"
    r"|num_batches_tracked|rope_freqs|attn\.bias|attention\.bias)$"
)


def encode_name(name: str) -> str:
    """Turn a tensor's name into one path component of a store.

    Percent-encodes what would hurt there: ``/``, ``\\``, ``%``, control characters, a leading ``.`` or
    ``__`` (zarr reserves it), and the names ``zarr.json`` and ``step`` (a store's own).

    Raises
    ------
    SelectionError
        If the result is longer than 255 bytes, the limit of a file name.

    Examples
    --------
    >>> encode_name("model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> encode_name("a/b"), encode_name("__w"), encode_name("zarr.json"), decode_name(encode_name("../x"))
    ('a%2Fb', '%5F%5Fw', 'zarr%2Ejson', '../x')
    """
    encoded = "".join(f"%{ord(c):02X}" if c in "/\\%" or ord(c) < 32 or ord(c) == 127 else c for c in name)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if encoded.startswith("__"):
        encoded = "%5F%5F" + encoded[2:]
    if encoded in _RESERVED:
        encoded = encoded.replace(".", "%2E") if "." in encoded else "".join(f"%{ord(c):02X}" for c in encoded)
    if not encoded:
        encoded = "%"
    if len(encoded.encode()) > _MAX_NAME_BYTES:
        raise SelectionError(f"tensor name {name[:60]!r}... is too long for a file name (255 bytes)")
    return encoded


def decode_name(encoded: str) -> str:
    """Undo `encode_name`."""
    if encoded == "%":
        return ""
    return re.sub(r"%([0-9A-F]{2})", lambda m: chr(int(m.group(1), 16)), encoded)


def layer_index(name: str) -> int | None:
    """Return the transformer layer that a tensor belongs to, None outside the layers.

    Examples
    --------
    >>> layer_index("model.layers.12.self_attn.q_proj.weight"), layer_index("lm_head.weight")
    (12, None)
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def module_kind(name: str) -> str:
    """Return what a tensor is within its layer: its name without prefix, layer, expert numbers, ``.weight``.

    Examples
    --------
    >>> module_kind("model.layers.12.self_attn.q_proj.weight")
    'self_attn.q_proj'
    >>> module_kind("model.layers.3.mlp.experts.17.up_proj.weight")
    'mlp.experts.up_proj'
    >>> module_kind("model.embed_tokens.weight"), module_kind("model.layers.0.self_attn.q_proj.bias")
    ('embed_tokens', 'self_attn.q_proj.bias')
    """
    match = _LAYER.search(name)
    kind = name[match.end() :] if match else name.removeprefix("model.").removeprefix("transformer.")
    kind = kind.removesuffix(".weight")
    kind = ".".join(part for part in kind.split(".") if not part.isdigit())
    return kind or name


def is_buffer(name: str) -> bool:
    """Tell whether a floating tensor is a buffer by its name: computed or counted, never trained.

    Examples
    --------
    >>> is_buffer("model.rotary_emb.inv_freq"), is_buffer("model.layers.0.self_attn.q_proj.bias")
    (True, False)
    """
    return _BUFFER.search(name) is not None


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern names a tensor.

    A pattern with ``*``, ``?`` or ``[`` is a shell glob over the whole name; any other matches wherever
    it stands in the name.

    Examples
    --------
    >>> matches("model.layers.0.input_layernorm.weight", "norm")
    True
    >>> matches("model.layers.10.mlp.up_proj.weight", "model.layers.1.*")
    False
    """
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern)
    return pattern in name


def select(
    names: Iterable[str], include: Sequence[str] = (), exclude: Sequence[str] = (), *, option: str = "--include"
) -> list[str]:
    """Select names: all, or those that an include pattern matches, less those that an exclude pattern does.

    ``option`` is what the include patterns are called in messages.

    Raises
    ------
    SelectionError
        If a pattern is empty or matches no name (a misspelt pattern would otherwise select in silence).
    """
    names = list(names)
    for called, patterns in ((option, include), ("--exclude", exclude)):
        for pattern in patterns:
            if not pattern:
                raise SelectionError(f"{called} was given an empty pattern, which would match everything")
            if not any(matches(n, pattern) for n in names):
                example = f", such as {names[0]!r}" if names else ""
                raise SelectionError(f"{called} {pattern!r} matches none of the {len(names)} tensors{example}")
    return [
        n
        for n in names
        if (not include or any(matches(n, p) for p in include)) and not any(matches(n, p) for p in exclude)
    ]
