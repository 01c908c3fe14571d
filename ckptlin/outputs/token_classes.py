"""Classes of tokens: how often one occurs, how certain it was at first, and where in its response it stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ckptlin.outputs.token_store import TokenStore

__all__ = ["TokenClasses", "classes_of", "distinct_tokens"]

_QUARTERS = (0.25, 0.5, 0.75)
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)


@dataclass(frozen=True, eq=False)
class TokenClasses:
    """One way to divide all tokens.

    Attributes
    ----------
    kind : str
        ``frequency``, ``entropy`` or ``position``.
    names : tuple of str
    codes : numpy.ndarray
        ``(num_tokens,) int8``: indices into the names.
    """

    kind: str
    names: tuple[str, ...]
    codes: np.ndarray[Any, Any]


def classes_of(store: TokenStore) -> Iterator[TokenClasses]:
    """Divide a store's tokens in every way; by entropy only where there is one."""
    yield _by_frequency(store.read("token_ids"))
    if store.entropy_step is not None:
        entropy = store.read("entropy")
        edges = np.unique(np.quantile(entropy, _QUARTERS))
        at = f"entropy at step {store.entropy_step}"
        yield _cut("entropy", entropy, edges, lambda lo, hi: _between(at, lo, hi))
    position = store.read("position")
    edges = np.unique(np.floor(np.quantile(position, _QUARTERS)))
    last = int(position.max())
    yield _cut(
        "position",
        position,
        edges,
        lambda lo, hi: f"position {0 if lo is None else int(lo) + 1} to {last if hi is None else int(hi)}",
    )


def distinct_tokens(store: TokenStore) -> np.ndarray[Any, Any]:
    """Hash each token with all that comes before it, its prompt included, ``(num_tokens,) uint64``.

    Tokens of equal hash stand behind the same text: a model gives them the same log-probability, and
    samples of one prompt begin with many such.  Two that differ have the same hash in one of 2^64 cases.
    """
    lengths = store.read("response_length").astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = store.read("token_ids").astype(np.uint64) + np.uint64(1)
    state = _mixed(store.read("prompt").astype(np.uint64) + np.uint64(1))
    hashes = np.empty(tokens.size, np.uint64)
    for position in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > position)
        places = starts[longer] + position
        state[longer] = _mixed(state[longer] ^ tokens[places])
        hashes[places] = state[longer]
    return hashes


def _by_frequency(token_ids: np.ndarray[Any, Any]) -> TokenClasses:
    """Cut the types, from rare to frequent, where a third and two thirds of all tokens are reached."""
    types, inverse, counts = np.unique(token_ids, return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    ends = np.cumsum(counts[order])
    third = np.empty(types.size, np.int8)
    third[order] = np.minimum(3 * (ends - counts[order] / 2) / token_ids.size, 2).astype(np.int8)
    return _without_empty("frequency", ("rare tokens", "middle", "frequent tokens"), third[inverse])


def _cut(kind: str, values: np.ndarray[Any, Any], edges: np.ndarray[Any, Any], name: Any) -> TokenClasses:
    """Cut at some values; what equals one lies below the cut."""
    codes = np.searchsorted(edges, values, side="left").astype(np.int8)
    bounds = [None, *edges.tolist(), None]
    names = tuple(name(lo, hi) for lo, hi in pairwise(bounds))
    return _without_empty(kind, names, codes)


def _without_empty(kind: str, names: tuple[str, ...], codes: np.ndarray[Any, Any]) -> TokenClasses:
    there = np.unique(codes)
    return TokenClasses(
        kind, tuple(names[code] for code in there), np.searchsorted(there, codes).astype(np.int8)
    )


def _between(what: str, lo: float | None, hi: float | None) -> str:
    if lo is None:
        return f"{what} up to {hi:.2g}"
    return f"{what} over {lo:.2g}" if hi is None else f"{what} {lo:.2g} to {hi:.2g}"


def _mixed(state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mix bits (the finaliser of splitmix64)."""
    state = state + _MULTIPLIER
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: np.ndarray[Any, Any] = state ^ (state >> np.uint64(31))
    return mixed
