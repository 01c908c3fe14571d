"""What a method is: a pure function from steps, a target and a Gram matrix to coefficients."""

from typing import Any, Protocol

import numpy as np

from ckptlin.errors import InputError

__all__ = ["Method", "check_steps"]


class Method(Protocol):
    """Predicts the checkpoint at a target step as an affine combination of the observed ones."""

    def __call__(
        self, steps: np.ndarray[Any, Any], target: float, gram: np.ndarray[Any, Any] | None
    ) -> np.ndarray[Any, Any]:
        """Return the coefficients.

        Parameters
        ----------
        steps : numpy.ndarray
            ``(num_steps,) float64``, strictly ascending.
        target : float
            Step to predict; may lie between or before the observed ones.
        gram : numpy.ndarray or None
            ``(num_steps, num_steps) float64`` of inner products of w_t − w_1; methods that depend on the
            steps alone ignore it.

        Returns
        -------
        numpy.ndarray
            ``(num_steps,) float64`` that sum to 1.
        """
        ...


def check_steps(name: str, steps: np.ndarray[Any, Any], at_least: int = 2) -> None:
    """Raise `InputError` if a method has fewer checkpoints than it needs."""
    if steps.size < at_least:
        selected = "only one was" if steps.size == 1 else f"only {steps.size} were"
        raise InputError(f"method {name} needs at least {at_least} checkpoints, and {selected} selected")
