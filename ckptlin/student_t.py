"""Quantiles of Student's t distribution, for prediction intervals: no dependency has them at run time."""

import math

from ckptlin.errors import InputError

__all__ = ["central_probability", "two_sided_quantile"]

# Halvings of the angle's interval: float64 has no more bits.
_MAX_HALVINGS = 200


def central_probability(t: float, degrees: int) -> float:
    """Return the probability that a t-distributed number lies between −t and t.

    The closed forms for whole degrees of freedom ν: with θ = atan(t/√ν)

    - ν odd: 2/π·(θ + sinθ·(cosθ + 2/3·cos³θ + … + (2·4⋯(ν−3))/(3·5⋯(ν−2))·cos^(ν−2) θ))
    - ν even: sinθ·(1 + 1/2·cos²θ + (1·3)/(2·4)·cos⁴θ + … + (1·3⋯(ν−3))/(2·4⋯(ν−2))·cos^(ν−2) θ)

    (Abramowitz and Stegun 26.7.3 and 26.7.4.)  All terms are positive, so nothing cancels.

    Examples
    --------
    >>> central_probability(1.0, 1), round(central_probability(2.228, 10), 4)
    (0.5, 0.95)
    """
    theta = math.atan(abs(t) / math.sqrt(degrees))
    return _probability(theta, degrees)


def two_sided_quantile(level: float, degrees: int) -> float:
    """Return the t that a t-distributed number exceeds on neither side with probability ``level``.

    Parameters
    ----------
    level : float
        Between 0 and 1, such as 0.95 for the .975 quantile.
    degrees : int
        Degrees of freedom, at least 1.

    Raises
    ------
    InputError
        If a parameter is out of range.

    Examples
    --------
    >>> round(two_sided_quantile(0.95, 1), 3), round(two_sided_quantile(0.95, 15), 3)
    (12.706, 2.131)
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"the level of an interval must lie between 0 and 1, not {level}")
    if degrees < 1:
        raise InputError(f"Student's t needs at least 1 degree of freedom, not {degrees}")
    # The probability rises with the angle, which is bounded where t is not.
    low, high = 0.0, math.pi / 2
    for _ in range(_MAX_HALVINGS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _probability(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(0.5 * (low + high))


def _probability(theta: float, degrees: int) -> float:
    sine, cosine = math.sin(theta), math.cos(theta)
    square = cosine * cosine
    is_odd = degrees % 2 == 1
    if degrees == 1:
        return 2.0 / math.pi * theta
    term = cosine if is_odd else 1.0
    total = term
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2.0 / math.pi * (theta + sine * total) if is_odd else sine * total
