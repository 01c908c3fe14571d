"""Which hidden states are looked at, and the sketch that keeps them small.

A state belongs to a token of a response: it is that of the position that predicts the token, where its
log-probability comes from.  Tokens behind the very same text share it (samples of one prompt all begin so), and
it counts once.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptlin.errors import InputError
from ckptlin.outputs.responses import Responses
from ckptlin.outputs.scorers import Probe

__all__ = ["States", "pick_states", "sketch_matrix"]


@dataclass(frozen=True, eq=False)
class States:
    """Some tokens of some responses, in the order of their file.

    Attributes
    ----------
    probes : tuple of Probe
        Those with a chosen token, cut off behind the last one.
    places : tuple of numpy.ndarray
        For each probe which tokens of its response are chosen, ``(n,) int32``, ascending.
    responses : tuple of int
        Number of each probe's response in the file.
    num_distinct : int
        Tokens behind distinct texts, of which these were chosen.
    num_tokens : int
        Of all responses.
    """

    probes: tuple[Probe, ...] = field(repr=False)
    places: tuple[np.ndarray[Any, Any], ...] = field(repr=False)
    responses: tuple[int, ...] = field(repr=False)
    num_distinct: int
    num_tokens: int

    @property
    def size(self) -> int:
        """Number of states."""
        return sum(len(chosen) for chosen in self.places)

    @property
    def starts(self) -> np.ndarray[Any, Any]:
        """Number of states before each probe's, ``(num_probes,) int64``."""
        sizes = np.array([len(chosen) for chosen in self.places])
        starts: np.ndarray[Any, Any] = np.cumsum(sizes) - sizes
        return starts

    @property
    def digest(self) -> str:
        """Hash of all ids and choices."""
        hashed = hashlib.blake2b(digest_size=16)
        for probe, chosen in zip(self.probes, self.places, strict=True):
            for ids in (probe.prompt_ids, probe.token_ids, chosen):
                hashed.update(len(ids).to_bytes(8, "little"))
                hashed.update(ids.astype("<i4").tobytes())
        return hashed.hexdigest()


def pick_states(responses: Responses, *, num_tokens: int, seed: int = 0) -> States:
    """Choose tokens of responses at random, each text before one once; all if there are no more.

    Raises
    ------
    InputError
        If ``num_tokens`` is below 1.
    """
    if num_tokens < 1:
        raise InputError(f"--tokens is {num_tokens}; it must be at least 1")
    seen: set[bytes] = set()
    candidates: list[tuple[int, int]] = []
    for number, probe in enumerate(responses.probes):
        hashed = hashlib.blake2b(probe.prompt_ids.astype("<i4").tobytes(), digest_size=16)
        for place, token in enumerate(probe.token_ids):
            text = hashed.digest()
            if text not in seen:
                seen.add(text)
                candidates.append((number, place))
            hashed.update(int(token).to_bytes(4, "little"))
    chosen = np.arange(len(candidates))
    if num_tokens < len(candidates):
        chosen = np.sort(np.random.default_rng([abs(seed), 1]).permutation(len(candidates))[:num_tokens])
    by_response: dict[int, list[int]] = {}
    for index in chosen:
        number, place = candidates[index]
        by_response.setdefault(number, []).append(place)
    places = tuple(np.array(found, np.int32) for found in by_response.values())
    probes = tuple(
        Probe(responses.probes[number].prompt_ids, responses.probes[number].token_ids[: found[-1] + 1])
        for number, found in zip(by_response, places, strict=True)
    )
    return States(probes, places, tuple(by_response), len(candidates), responses.num_tokens)


def sketch_matrix(size: int, dim: int, *, layer: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return the matrix that a layer's states are multiplied with, ``(size, min(dim, size)) float32``.

    Gaussian with variance 1/dim, so that lengths and angles stay what they were within about 1/√dim
    (Johnson and Lindenstrauss, 1984); the identity where the states have no more than ``dim`` coordinates.

    Examples
    --------
    >>> sketch_matrix(64, 32, layer=0).shape, sketch_matrix(2, 32, layer=0).tolist()
    ((64, 32), [[1.0, 0.0], [0.0, 1.0]])
    """
    if dim < 1:
        raise InputError(f"--dim is {dim}; it must be at least 1")
    if size <= dim:
        return np.eye(size, dtype=np.float32)
    matrix = np.random.default_rng([abs(seed), 2, layer]).standard_normal((size, dim)) / np.sqrt(dim)
    rounded: np.ndarray[Any, Any] = matrix.astype(np.float32)
    return rounded
