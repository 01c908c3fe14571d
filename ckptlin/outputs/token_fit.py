"""How linear log-probabilities are in the step: the weights' regression, on tokens.

Two populations, as for weights: every token whose log-probability moved at all, and the paper's, tokens with
|last − first| > 0.2 (arXiv 2601.04537).  The null is a random walk of every token's own step size: tokens are
grouped by octaves of the root mean square increment, walks are drawn for each (`ckptlin.null`), sent
through the same filter, and weighted by the tokens that they stand for.  That matters here: the filter
prefers what went far, and of a random walk too the far ones look straight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptlin.kernels.regression import Abscissa
from ckptlin.null import simulate_null
from ckptlin.outputs.step_fit import FLOAT32, flat_row, r2_histogram, regress
from ckptlin.outputs.token_classes import classes_of, distinct_tokens
from ckptlin.outputs.token_store import TokenStore
from ckptlin.summary import NUM_BINS, R2Figures

__all__ = ["FAR", "TokenFit", "TokenGroup", "TokenTrajectory", "fit_tokens"]

FAR = 0.2  # the paper's filter, in nats
_SAMPLE, _MIN_PATHS = 1024, 4096
_CONTEXT = 12


@dataclass(frozen=True)
class TokenGroup:
    """R² of a class of tokens.

    Attributes
    ----------
    kind : str
        ``all``, ``frequency``, ``entropy`` or ``position``.
    name : str
    num_tokens : int
    moved, far : R2Figures
        Of all that moved, and of those with |last − first| > 0.2.
    null_moved, null_far : R2Figures
        What random walks would show.
    """

    kind: str
    name: str
    num_tokens: int
    moved: R2Figures
    far: R2Figures
    null_moved: R2Figures
    null_far: R2Figures

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        figures = {name: getattr(self, name).to_dict() for name in ("moved", "far", "null_moved", "null_far")}
        return {"kind": self.kind, "name": self.name, "num_tokens": self.num_tokens} | figures

    def to_row(self) -> dict[str, Any]:
        """Return it as one flat row, for a table."""
        return flat_row(self.to_dict())


@dataclass(frozen=True)
class TokenTrajectory:
    """A token and its way.

    Attributes
    ----------
    problem_id : str
    sample : int
    position : int
        In its response.
    token_id : int
    text, before : str
        The token, and the end of what stands before it.
    values : tuple of float
        Log-probability at each step.
    r2, slope, intercept : float
    count : int
        How many tokens of the responses stand behind the very same text.
    """

    problem_id: str
    sample: int
    position: int
    token_id: int
    text: str
    before: str
    values: tuple[float, ...]
    r2: float
    slope: float
    intercept: float
    count: int

    @property
    def change(self) -> float:
        """Last minus first."""
        return self.values[-1] - self.values[0]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        fields = ("problem_id", "sample", "position", "token_id", "text", "before", "r2", "slope", "intercept")
        return {name: getattr(self, name) for name in fields} | {
            "count": self.count,
            "change": self.change,
            "values": list(self.values),
        }


@dataclass(frozen=True)
class TokenFit:
    """The linearity of a store's log-probabilities.

    Attributes
    ----------
    source : str
    steps : tuple of int
    num_responses : int
    num_distinct : int
        Tokens behind distinct texts: all others repeat one of them.
    groups : tuple of TokenGroup
        All tokens first.
    histogram, null_histogram : numpy.ndarray
        ``(2, 1000) float64``: R² of all that moved, and of the paper's population.
    up, down : tuple of TokenTrajectory
        Those that moved most, each text once.
    """

    source: str
    steps: tuple[int, ...]
    num_responses: int
    num_distinct: int
    groups: tuple[TokenGroup, ...] = field(repr=False)
    histogram: np.ndarray[Any, Any] = field(repr=False)
    null_histogram: np.ndarray[Any, Any] = field(repr=False)
    up: tuple[TokenTrajectory, ...] = field(repr=False)
    down: tuple[TokenTrajectory, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "source": self.source,
            "steps": list(self.steps),
            "num_responses": self.num_responses,
            "num_distinct": self.num_distinct,
            "groups": [group.to_dict() for group in self.groups],
            "up": [token.to_dict() for token in self.up],
            "down": [token.to_dict() for token in self.down],
        }


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Figures of every token, float32 unless said otherwise."""

    r2: np.ndarray[Any, Any]
    slope: np.ndarray[Any, Any]
    intercept: np.ndarray[Any, Any]
    change: np.ndarray[Any, Any]
    octave: np.ndarray[Any, Any]  # int16, of the root mean square increment; meaningless where r2 is NaN


def fit_tokens(store: TokenStore, *, steps: str | None = None, num_moving: int = 10, seed: int = 0) -> TokenFit:
    """Fit every token's log-probability by a straight line in the step.

    Parameters
    ----------
    store : TokenStore
    steps : str, optional
        Window of steps, see `ckptlin.selection.select_rows`; default all.
    num_moving : int
        How many of those that move most are listed, up and down.
    seed : int
        Of the random walks.

    Returns
    -------
    TokenFit
        About 60 bytes a token are in memory meanwhile.

    Raises
    ------
    InputError
        If there are fewer than two steps.
    SelectionError
        If the window holds none, or a step that is not there.
    """
    chosen = store.steps_to_fit(steps)
    tokens, samples = _fit_all(store, chosen)
    nulls = {
        # Walks of their own for each octave.
        octave: _walk(np.concatenate(parts, axis=1), chosen, seed=4096 * abs(seed) + 2048 + octave)
        for octave, parts in samples.items()
    }
    everything = np.zeros(store.num_tokens, np.int8)
    first, histogram, null_histogram = _groups("all", ("all tokens",), everything, tokens, nulls)
    groups = list(first)
    for classes in classes_of(store):
        groups += _groups(classes.kind, classes.names, classes.codes, tokens, nulls)[0]
    hashes = distinct_tokens(store)
    distinct, counts = np.unique(hashes, return_counts=True)
    listed = [_most_moving(store, chosen, tokens, hashes, num_moving, sign=sign) for sign in (1, -1)]
    up, down = (
        tuple(_trajectory(store, chosen, tokens, place, int(counts[np.searchsorted(distinct, hashes[place])]))
              for place in places)
        for places in listed
    )  # fmt: skip
    return TokenFit(
        source=str(store.path),
        steps=chosen,
        num_responses=store.num_responses,
        num_distinct=distinct.size,
        groups=tuple(groups),
        histogram=histogram[:, 0],
        null_histogram=null_histogram[:, 0],
        up=up,
        down=down,
    )


def _fit_all(store: TokenStore, steps: Sequence[int]) -> tuple[_Tokens, dict[int, list[np.ndarray[Any, Any]]]]:
    """Fit every token; sample trajectories of each octave at even distances."""
    abscissa = Abscissa.of(steps)
    span = steps[-1] - steps[0]
    size = store.num_tokens
    found = _Tokens(
        r2=np.empty(size, np.float32),
        slope=np.empty(size, np.float32),
        intercept=np.empty(size, np.float32),
        change=np.empty(size, np.float32),
        octave=np.zeros(size, np.int16),
    )
    samples: dict[int, list[np.ndarray[Any, Any]]] = {}
    blocks = list(store.blocks())
    for lo, hi in blocks:
        values = store.read_log_probs(steps, lo, hi)
        fit = regress(values, abscissa, ("r2", "slope", "intercept"))
        found.r2[lo:hi], found.slope[lo:hi], found.intercept[lo:hi] = fit.r2, fit.slope, fit.intercept
        found.change[lo:hi] = values[-1].astype(np.float64) - values[0]
        squares = (np.diff(values.astype(np.float64), axis=0) ** 2).sum(axis=0)
        moved = np.flatnonzero(~np.isnan(found.r2[lo:hi]))
        octaves = np.floor(np.log2(squares[moved] / span) / 2).astype(np.int16)
        found.octave[lo + moved] = octaves
        for octave in np.unique(octaves):
            members = moved[octaves == octave]
            share = min(members.size, -(-_SAMPLE // len(blocks)))
            columns = members[np.linspace(0, members.size - 1, share).astype(np.int64)]
            samples.setdefault(int(octave), []).append(values[:, columns])
    return found, samples


@dataclass(frozen=True, eq=False)
class _Null:
    """What the walks of an octave show, as shares of all of them: rows are the two populations."""

    histogram: np.ndarray[Any, Any]
    above: np.ndarray[Any, Any]  # (2, 2): above 0.7 and above 0.9


def _walk(sample: np.ndarray[Any, Any], steps: Sequence[int], *, seed: int) -> _Null:
    num_paths = max(sample.shape[1], _MIN_PATHS)
    null = simulate_null(sample.astype(np.float64), steps, FLOAT32, num_paths=num_paths, seed=seed)
    # Rounding leaves some walks of the smallest octaves where they were; their tokens moved.
    moved = ~np.isnan(null.r2)
    populations = (moved, moved & (np.abs(null.change) > FAR))
    weight = 1 / max(int(moved.sum()), 1)
    histogram = np.stack([r2_histogram(null.r2[p]) * weight for p in populations])
    above = np.array([[(null.r2[p] > limit).sum() * weight for limit in (0.7, 0.9)] for p in populations])
    return _Null(histogram, above)


def _groups(
    kind: str,
    names: Sequence[str],
    codes: np.ndarray[Any, Any],
    tokens: _Tokens,
    nulls: dict[int, _Null],
) -> tuple[list[TokenGroup], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sum classes up; return also their histograms and those of the null, each ``(2, num_classes, 1000)``."""
    moved = ~np.isnan(tokens.r2)
    observed = np.zeros((2, len(names), NUM_BINS))
    expected = np.zeros_like(observed)
    groups = []
    for code, name in enumerate(names):
        inside = codes == code
        populations = (inside & moved, inside & moved & (np.abs(tokens.change) > FAR))
        figures, null_figures = [], []
        octaves, counts = np.unique(tokens.octave[populations[0]], return_counts=True)
        above = sum(
            (count * nulls[int(octave)].above for octave, count in zip(octaves, counts, strict=True)),
            start=np.zeros((2, 2)),
        )
        for octave, count in zip(octaves, counts, strict=True):
            expected[:, code] += count * nulls[int(octave)].histogram
        for row, population in enumerate(populations):
            r2 = tokens.r2[population].astype(np.float64)
            observed[row, code] = r2_histogram(r2)
            figures.append(
                R2Figures.of(
                    observed[row, code], float((r2 > 0.7).sum()), float((r2 > 0.9).sum()), float(r2.sum())
                )
            )
            null_figures.append(
                R2Figures.of(expected[row, code], float(above[row, 0]), float(above[row, 1]), None)
            )
        groups.append(
            TokenGroup(kind, name, int(inside.sum()), figures[0], figures[1], null_figures[0], null_figures[1])
        )
    return groups, observed, expected


def _most_moving(
    store: TokenStore,
    steps: Sequence[int],
    tokens: _Tokens,
    hashes: np.ndarray[Any, Any],
    number: int,
    *,
    sign: int,
) -> list[int]:
    """Return the tokens that moved most in a direction, each text once."""
    order = np.argsort(-sign * tokens.change, kind="stable")
    found: list[int] = []
    seen: set[int] = set()
    for place in order:
        if len(found) == number or sign * tokens.change[place] <= 0:
            break
        if int(hashes[place]) not in seen:
            seen.add(int(hashes[place]))
            found.append(int(place))
    return found


def _trajectory(
    store: TokenStore, steps: Sequence[int], tokens: _Tokens, place: int, count: int
) -> TokenTrajectory:
    texts = store.read_json("texts")
    response, position = int(store.read("response")[place]), int(store.read("position")[place])
    problem, sample = store.read_json("names")[response]
    ids = store.read("token_ids")[place - position : place + 1]
    lengths = store.read("prompt_length")
    prompt = int(store.read("prompt")[response])
    start = int(lengths[:prompt].sum())
    before = [*store.read("prompt_ids")[start : start + lengths[prompt]], *ids[:-1]][-_CONTEXT:]
    return TokenTrajectory(
        problem_id=problem,
        sample=sample,
        position=position,
        token_id=int(ids[-1]),
        text=texts[str(ids[-1])],
        before="".join(texts[str(token)] for token in before),
        values=tuple(map(float, store.read_log_probs(steps, place, place + 1)[:, 0])),
        r2=float(tokens.r2[place]),
        slope=float(tokens.slope[place]),
        intercept=float(tokens.intercept[place]),
        count=count,
    )
