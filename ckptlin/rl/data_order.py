"""Which problem comes when: an order that goes on over epochs, legs and restarts."""

from typing import Any

import numpy as np

__all__ = ["data_order"]


def data_order(num_problems: int, *, start: int, stop: int, seed: int) -> np.ndarray[Any, Any]:
    """Return the problems at the positions ``start`` to ``stop`` of the data stream.

    Every epoch goes through all problems in an order of its own, drawn from the seed and the epoch's number, so
    that any stretch can be made without the ones before it.  (TRL's sampler starts again with the order of the
    first epoch when training is resumed in a later one.)

    Returns
    -------
    numpy.ndarray
        ``(stop - start,) int64``, indices of problems.

    Examples
    --------
    >>> whole = data_order(5, start=0, stop=10, seed=0)
    >>> sorted(whole[:5].tolist()), (data_order(5, start=7, stop=10, seed=0) == whole[7:]).all()
    ([0, 1, 2, 3, 4], np.True_)
    """
    if stop <= start:
        return np.zeros(0, np.int64)
    first, last = start // num_problems, (stop - 1) // num_problems
    epochs = [
        np.random.default_rng([seed, epoch]).permutation(num_problems) for epoch in range(first, last + 1)
    ]
    offset = first * num_problems
    return np.concatenate(epochs)[start - offset : stop - offset].astype(np.int64)
