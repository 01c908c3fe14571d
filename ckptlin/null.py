"""What R² random walks would show on the same steps: the null beside every figure of linearity.

A random walk trends, and what trends looks linear: over 11 to 21 even steps a quarter of all walks have
R² > 0.7.  Rounding to the checkpoint's dtype and the paper's filters move that share up and down, so it
has to be simulated for each tensor.  This module owns the simulation and the calibration of its step
size; which parameters are sampled, how tensors are pooled and what is reported is left to the fit.

Legend of the single letters: x values on the dtype's grid, d displacements from a walk's first value,
s steps, sigma the standard deviation of the hidden walk after one unit step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptlin.dtypes import TensorDType
from ckptlin.errors import InputError
from ckptlin.populations import PAPER_MIN_DISTINCT, PAPER_MIN_RANGE

__all__ = ["NullPaths", "simulate_null"]

_FLOAT64_MANTISSA = 52
_FLOAT64_EXPONENT = np.uint64(0x7FF0_0000_0000_0000)
_LARGEST = 1e300  # a walk that starts below this, and its squared length over the scale, cannot overflow
_MEAN_SQUARE_TOLERANCE = 1e-3
_SHARE_TOLERANCE = 0.02
_STANDARD_ERRORS = 3.0
_MAX_EVALUATIONS = 40


@dataclass(frozen=True, slots=True)
class NullPaths:
    """Random walks on a dtype's grid, and how linear they look.

    Attributes
    ----------
    r2 : (num_paths,) float64
        Squared Pearson correlation with the step; NaN where the path's value never changed.
    moved : (num_paths,) bool
        Whether any bit changed.  A path that only changes between −0.0 and 0.0 moved and has no R².
    paper : (num_paths,) bool
        Whether the path passes the paper's filters: range above `PAPER_MIN_RANGE` and at least
        `PAPER_MIN_DISTINCT` distinct values.
    change : (num_paths,) float64
        Last value minus first; 0 for a path that does not walk.
    rms_increment : float
        Root mean square increment of the hidden, unrounded walk over one unit step; 0 if nothing moved.
    frozen_share : float
        Share of the paths that do not walk at all (they count as paths that did not move).  0 where
        rounding alone explains how many parameters of the sample never moved; 1 if nothing moved.
    """

    r2: NDArray[np.float64]
    moved: NDArray[np.bool_]
    paper: NDArray[np.bool_]
    change: NDArray[np.float64]
    rms_increment: float
    frozen_share: float


def simulate_null(
    sample: NDArray[np.float64],
    steps: Sequence[int],
    dtype: TensorDType,
    *,
    num_paths: int = 2048,
    seed: int = 0,
) -> NullPaths:
    """Simulate random walks that look like the sampled parameters in all but their trend.

    A walk starts at the first value of a sampled parameter, displaced by a uniform draw from the interval
    that rounds to this value: a checkpoint shows a rounded copy of a finer master weight, and without the
    displacement a step under half a unit in the last place would hide for several checkpoints.  Gaussian
    increments with variance ``sigma² · (s[i+1] − s[i])`` follow, and each checkpoint is rounded to nearest
    even on the grid of ``dtype``.  One sigma for the tensor is found (with the same random numbers for
    every trial) for which the rounded walks have the sample's mean squared increment.

    Parameters that never moved may be too slow to cross a rounding boundary or not be trained at all (rows
    of an embedding); so all parameters walk unless so many stood still that, by three standard errors,
    rounding does not explain it.  Then the smallest share that does is frozen, and the others, drawn from
    the moved parameters so far as they must have moved, carry the whole of the observed movement.

    Parameters
    ----------
    sample : (num_steps, num_sampled) float64
        Trajectories of parameters sampled from the tensor, with values on the grid of ``dtype``.
    steps : sequence of int
        Training steps, strictly ascending, at any distance.
    dtype : TensorDType
        The checkpoint's element type; any floating type.
    num_paths : int, optional
        Number of walks.  The standard error of a share p is ``sqrt(p (1 − p) / num_paths)``.
    seed : int, optional
        Seed of the random numbers; the same arguments give the same result.

    Returns
    -------
    NullPaths
        With a single step, or a sample in which nothing moves, no path moves.  With two steps R² is 1
        for every path that moved, as it is for every parameter.

    Raises
    ------
    InputError
        If the sample holds NaN or infinity, or float64 values above 1e300; if its shape does not fit the
        steps, the steps do not ascend, ``num_paths`` is not positive, ``dtype`` is not a floating type, or
        the first values are not on its grid.

    Notes
    -----
    Values, sums and R² are float64.  float64 is rounded to the grid directly, never by way of float32,
    which would round twice.  Walks that leave the dtype's range stay at its largest finite value.  Movement
    is scaled to 1 before it is squared, so that tensors of any magnitude neither underflow nor overflow.

    Step sizes that differ between parameters by more than a factor of two (log-normal with deviation 1 or
    1.5 instead of 0.5) look like one group that walks and one that is frozen; the share of R² > 0.7 in
    bf16 then came out too high by up to .06 and .09, which errs against calling a run linear.

    Examples
    --------
    >>> import numpy as np
    >>> from ckptlin.dtypes import from_safetensors
    >>> steps = range(0, 1100, 100)
    >>> walks = np.cumsum(np.random.default_rng(1).normal(size=(11, 500)), axis=0)
    >>> null = simulate_null(walks, steps, from_safetensors("F64"))
    >>> round(float(np.mean(null.r2 > 0.7)), 1)
    0.3
    """
    sample = np.asarray(sample, np.float64)
    grid = _Grid.of(dtype)
    times = _checked_steps(steps)
    _check_sample(sample, times, grid, dtype)
    if num_paths < 1:
        raise InputError(f"num_paths is {num_paths}; at least one path is needed")

    increments = np.diff(sample, axis=0)
    scale = float(np.abs(increments).max(initial=0.0))
    if scale == 0.0:
        return _unmoved(num_paths)
    increments /= scale
    squares: NDArray[np.float64] = np.einsum("ij,ij->j", increments, increments)
    rng = np.random.default_rng(seed)
    walks = _Walks(sample[0], squares > 0, np.diff(times), scale, grid, num_paths, rng)
    log_sigma, walking = _calibrate(walks, squares)

    frozen_share = 1.0 - walking
    walkers = np.flatnonzero(rng.permutation(num_paths) >= round(frozen_share * num_paths))
    path = walks.paths(log_sigma)[:, : walkers.size]
    r2 = np.full(num_paths, np.nan)
    moved = np.zeros(num_paths, np.bool_)
    paper = np.zeros(num_paths, np.bool_)
    change = np.zeros(num_paths)
    change[walkers] = path[-1] - path[0]
    r2[walkers] = _r_squared(path, times)
    moved[walkers] = (path.view(np.uint64)[1:] != path.view(np.uint64)[0]).any(axis=0)
    paper[walkers] = _passes_paper_filters(path)
    return NullPaths(r2, moved, paper, change, rms_increment=math.exp(log_sigma), frozen_share=frozen_share)


def _unmoved(num_paths: int) -> NullPaths:
    return NullPaths(
        r2=np.full(num_paths, np.nan),
        moved=np.zeros(num_paths, np.bool_),
        paper=np.zeros(num_paths, np.bool_),
        change=np.zeros(num_paths),
        rms_increment=0.0,
        frozen_share=1.0,
    )


def _checked_steps(steps: Sequence[int]) -> NDArray[np.float64]:
    times = np.asarray(steps, np.float64)
    if times.ndim != 1 or times.size == 0:
        raise InputError("the null needs at least one step")
    if not (np.diff(times) > 0).all():
        raise InputError(f"steps must ascend strictly, but are {list(steps)}")
    return times


def _check_sample(
    sample: NDArray[np.float64], times: NDArray[np.float64], grid: "_Grid", dtype: TensorDType
) -> None:
    if sample.ndim != 2 or sample.shape[0] != times.size or sample.shape[1] == 0:
        raise InputError(
            f"the sample has shape {sample.shape}, expected ({times.size}, num_sampled): "
            "a row for each step and at least one parameter"
        )
    largest = max(float(sample.max()), -float(sample.min()))  # NaN and infinity come through both
    if not math.isfinite(largest):
        count = int(np.count_nonzero(~np.isfinite(sample).all(axis=0)))
        raise InputError(
            f"{count} of {sample.shape[1]} sampled parameters are NaN or infinite at some step; "
            "leave them out of the sample"
        )
    if largest > _LARGEST:
        raise InputError(f"the sample holds {largest:.3g}; no walk is simulated above {_LARGEST:g}")
    if not np.array_equal(grid.round(sample[0]), sample[0]):
        raise InputError(f"the sample's first values are not {dtype.zarr} values; pass the checkpoint's dtype")


@dataclass(frozen=True, slots=True)
class _Grid:
    """The finite values of a floating dtype."""

    mantissa_bits: int
    smallest_normal: float
    largest: float

    @classmethod
    def of(cls, dtype: TensorDType) -> "_Grid":
        if dtype.mantissa_bits is None:
            raise InputError(f"{dtype.zarr} is not a floating type; the null is defined for those alone")
        info = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
        # Half of float64's range, so that the difference of two values is finite.
        largest = 2.0**1022 if dtype.mantissa_bits == _FLOAT64_MANTISSA else float(info.max)
        return cls(dtype.mantissa_bits, float(info.smallest_normal), largest)

    def _binade(self, x: NDArray[np.float64], out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the power of two at or below each magnitude, the smallest normal number for less."""
        bits = None if out is None else out.view(np.uint64)
        power = np.bitwise_and(x.view(np.uint64), _FLOAT64_EXPONENT, out=bits).view(np.float64)
        return np.maximum(power, self.smallest_normal, out=power)

    def round(
        self,
        x: NDArray[np.float64],
        out: NDArray[np.float64] | None = None,
        scratch: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Round to nearest even on the grid: one rounding, subnormals and the sign of zero included."""
        if self.mantissa_bits == _FLOAT64_MANTISSA:
            return np.clip(x, -self.largest, self.largest, out=out)
        # Adding 1.5 · 2^(e + 52 − m) to a number of exponent e leaves m of its mantissa bits, rounded to
        # nearest even by the addition itself; exact for every m up to 50, subnormals included.
        magic = self._binade(x, scratch)
        magic *= 1.5 * 2.0 ** (_FLOAT64_MANTISSA - self.mantissa_bits)
        rounded = np.add(x, magic, out=out)
        rounded -= magic
        np.clip(rounded, -self.largest, self.largest, out=rounded)
        return np.copysign(rounded, x, out=rounded)

    def cell(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how far up and down from the grid values x numbers still round to them."""
        binade = self._binade(x)
        outward = binade * 2.0 ** -(self.mantissa_bits + 1)
        is_power_of_two = (np.abs(x) == binade) & (binade > self.smallest_normal)
        inward = np.where(is_power_of_two, 0.5 * outward, outward)
        return np.where(x < 0, inward, outward), np.where(x < 0, outward, inward)


class _Walks:
    """Walks with fixed random numbers, for any sigma and any mixture of their starting values.

    Increments are in units of ``scale``, the largest movement in the sample, wherever they are squared.
    """

    def __init__(
        self,
        first: NDArray[np.float64],
        moved: NDArray[np.bool_],
        gaps: NDArray[np.float64],
        scale: float,
        grid: _Grid,
        num_paths: int,
        rng: np.random.Generator,
    ) -> None:
        self.span = float(gaps.sum())
        self.scale = scale
        self._grid = grid
        walk = rng.standard_normal((gaps.size, num_paths))
        walk *= np.sqrt(gaps)[:, None]
        self._walk = np.cumsum(walk, axis=0, out=walk)
        self._offset = rng.random(num_paths)
        self._lot = rng.random(num_paths)
        self._moved_start = rng.choice(first[moved], num_paths)
        still = first if moved.all() else first[~moved]  # never drawn if all moved
        self._still_start = rng.choice(still, num_paths)
        # Fresh arrays of this size cost more in page faults than the arithmetic on them.
        self._path = np.empty((gaps.size + 1, num_paths))
        self._hidden = np.empty_like(walk)
        self._scratch = np.empty_like(walk)
        self.draw_starts(float(moved.mean()))

    def draw_starts(self, moved_share: float) -> None:
        """Start this share of the walks at parameters that moved, the others at parameters that did not."""
        self._start = np.where(self._lot < moved_share, self._moved_start, self._still_start)
        up, down = self._grid.cell(self._start)
        self._hidden_offset = self._offset * (up + down) - down

    def paths(self, log_sigma: float) -> NDArray[np.float64]:
        """Return the rounded walks, (num_steps, num_paths) float64; the first row holds the starts.

        The array is overwritten by the next call.
        """
        # Displacements are summed before the start is added: on the float64 grid that addition is the
        # rounding, and steps far below one unit in the last place are not lost.
        hidden = np.multiply(self._walk, math.exp(log_sigma), out=self._hidden)
        hidden += self._hidden_offset
        hidden += self._start
        self._path[0] = self._start
        self._grid.round(hidden, out=self._path[1:], scratch=self._scratch)
        return self._path

    def squares(self, log_sigma: float) -> NDArray[np.float64]:
        """Return each walk's sum of squared increments, in units of ``scale²``."""
        path = self.paths(log_sigma)
        increments = np.subtract(path[1:], path[:-1], out=self._scratch)
        increments /= self.scale
        squares: NDArray[np.float64] = np.einsum("ij,ij->j", increments, increments)
        return squares


def _calibrate(walks: _Walks, squares: NDArray[np.float64]) -> tuple[float, float]:
    """Return log(sigma) and the share of walking parameters that reproduce the sample's movement.

    ``squares`` are the sampled parameters' sums of squared increments, in units of ``scale²``.
    """
    moved = squares > 0
    share = float(moved.mean())
    mean_square = float(squares.mean())

    def fit(moved_share: float, guess: float) -> float:
        walks.draw_starts(moved_share)
        target = mean_square * moved_share / share
        return _solve(lambda log_sigma: float(walks.squares(log_sigma).mean()), target, guess)

    def excess(moved_share: float, log_sigma: float) -> float:
        """Return log(share of moving walks / moved_share), less its error."""
        simulated = walks.squares(log_sigma)
        moving = simulated > 0
        p = float(moving.mean())
        if p == 0.0:
            return -math.inf
        # Both shares and both mean squares are estimates, and sigma hangs on the latter: p changes with the
        # mean square about as if movement were a Poisson process.  Errors by the delta method.
        elasticity = -(1 - p) * math.log(1 - p) / p if p < 1 else 0.0
        weight = 1.0 if moved_share == share else elasticity
        of_walks = moving / p - elasticity * simulated / simulated.mean()
        of_sample = weight * moved / share - elasticity * squares / mean_square
        error = math.sqrt(of_walks.var() / moving.size + of_sample.var() / moved.size)
        return math.log(p / moved_share) - _STANDARD_ERRORS * error

    # With a the share of walkers that move, share/a of the parameters walk: at a = share all of them do,
    # at a = 1 those that were seen to move.  The root is where the walks move as often as that assumes.
    # Rounding adds to the mean square, so the guess without rounding lies at or above the first sigma.
    log_sigma = fit(share, math.log(walks.scale) + 0.5 * math.log(mean_square / walks.span))
    if excess(share, log_sigma) <= 0:
        return log_sigma, 1.0
    log_sigma = fit(1.0, log_sigma)
    if excess(1.0, log_sigma) > -_SHARE_TOLERANCE:
        return log_sigma, share
    low, high = share, 1.0
    while high / low > 1 + _SHARE_TOLERANCE:
        middle = math.sqrt(low * high)
        log_sigma = fit(middle, log_sigma)
        if excess(middle, log_sigma) > 0:
            low = middle
        else:
            high = middle
    return fit(low, log_sigma), share / low


def _solve(mean_square: Callable[[float], float], target: float, guess: float) -> float:
    """Return the log(sigma) at which a rising function reaches its target, by regula falsi on logarithms.

    The function is a simulation with few or many jumps: the search ends when the value is within 0.1%
    of the target, or when sigma is bracketed as closely and a jump lies between.
    """
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    previous_error = 0.0
    log_sigma = guess
    for _ in range(_MAX_EVALUATIONS):
        value = mean_square(log_sigma)
        error = math.log(value / target) if value > 0 else -math.inf
        if abs(error) < _MEAN_SQUARE_TOLERANCE:
            break
        # The Illinois rule: an end that stays twice has its error halved, or the other would creep.
        if error < 0:
            if above is not None and previous_error < 0:
                above = (above[0], above[1] / 2)
            below = (log_sigma, error)
        else:
            if below is not None and previous_error > 0:
                below = (below[0], below[1] / 2)
            above = (log_sigma, error)
        previous_error = error
        if below is None or above is None:
            # The mean square grows at least as fast as sigma and at most as its square, so that a step of
            # the whole error brackets the root.
            log_sigma -= max(error, -3.0)
        elif above[0] - below[0] < _MEAN_SQUARE_TOLERANCE:
            break
        elif math.isinf(below[1]):
            log_sigma = (below[0] + above[0]) / 2
        else:
            log_sigma = (below[0] * above[1] - above[0] * below[1]) / (above[1] - below[1])
    return log_sigma


def _r_squared(path: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared Pearson correlation of each column with the steps, NaN for a constant column."""
    d = path - path[0]
    scale = np.abs(d).max(axis=0)
    constant = scale == 0
    d /= np.where(constant, 1.0, scale)
    d -= d.mean(axis=0)
    s = times - times.mean()
    s /= max(float(np.abs(s).max()), 1.0)
    denominator = (s @ s) * np.einsum("ij,ij->j", d, d)
    denominator[constant] = np.nan
    r2: NDArray[np.float64] = np.minimum((s @ d) ** 2 / denominator, 1.0)
    return r2


def _passes_paper_filters(path: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell for each column whether it passes the paper's filters."""
    lowest = path.min(axis=0)
    highest = path.max(axis=0)
    wide = highest - lowest > PAPER_MIN_RANGE
    # Climb to the next larger value as often as needed; at 14 steps a third of the time of a sort.
    value = lowest
    for _ in range(PAPER_MIN_DISTINCT - 2):
        value = np.where(path > value, path, np.inf).min(axis=0)
    passes: NDArray[np.bool_] = wide & (value < highest)
    return passes
