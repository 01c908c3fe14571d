"""Prediction intervals of the least-squares line, tensor by tensor, from Gram matrices alone."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.atomic import write_file
from ckptlin.errors import InputError
from ckptlin.gram_matrices import GramMatrices
from ckptlin.student_t import two_sided_quantile

__all__ = ["MIN_STEPS", "PredictionIntervals", "TensorInterval", "check_path", "prediction_intervals"]

_FORMATS = (".json", ".csv")
# Fewest checkpoints that leave a residual.
MIN_STEPS = 3


@dataclass(frozen=True, slots=True)
class TensorInterval:
    """How far the parameters of a tensor may lie from their lines at the target.

    Attributes
    ----------
    name : str
        Of the tensor, or ``model`` for all together.
    num_params : int
    residual_rms : float
        √(mean of the parameters' s²), s² = SSE/(T − 2).
    half_width_rms : float
        Root mean square of the half widths t·s·√(1 + 1/T + (s* − s̄)²/S).
    move_rms : float
        Root mean square of the predicted move from the last checkpoint.
    relative : float or None
        ``half_width_rms / move_rms``; over 1 the prediction does not tell a parameter's move from none.  None
        where no move is predicted.
    """

    name: str
    num_params: int
    residual_rms: float
    half_width_rms: float
    move_rms: float
    relative: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the interval as plain data."""
        return {field: getattr(self, field) for field in self.__slots__}


@dataclass(frozen=True)
class PredictionIntervals:
    """Prediction intervals of every tensor and of the whole model.

    Attributes
    ----------
    target : int
    steps : tuple of int
        The window, T of them.
    level : float
        Probability that a parameter's value at the target lies within, if its residuals are independent and
        normal.
    degrees : int
        T − 2.
    quantile : float
        t.
    leverage : float
        1 + 1/T + (s* − s̄)²/S.
    tensors : tuple of TensorInterval
    model : TensorInterval
    """

    target: int
    steps: tuple[int, ...]
    level: float
    degrees: int
    quantile: float
    leverage: float
    tensors: tuple[TensorInterval, ...]
    model: TensorInterval

    def to_dict(self) -> dict[str, Any]:
        """Return the intervals as plain data."""
        return {
            "created_by": f"ckptlin {__version__}",
            "step": self.target,
            "window": list(self.steps),
            "level": self.level,
            "degrees_of_freedom": self.degrees,
            "t_quantile": self.quantile,
            "leverage": self.leverage,
            "model": self.model.to_dict(),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for the model and one for each tensor."""
        return [interval.to_dict() for interval in (self.model, *self.tensors)]

    def save(self, path: Path) -> None:
        """Write them to a file, JSON or CSV by its name; it appears whole or not at all.

        Raises
        ------
        InputError
            If the name says neither.
        """
        check_path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        else:
            with StringIO(newline="") as file:
                writer = csv.DictWriter(file, list(TensorInterval.__slots__))
                writer.writeheader()
                writer.writerows(self.to_rows())
                text = file.getvalue()
        write_file(path, text.encode())


def check_path(path: Path) -> None:
    """Raise `InputError` if intervals cannot be written to a path."""
    if path.suffix not in _FORMATS:
        raise InputError(f"--intervals {path} must end in .json or .csv")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--intervals {path} lies in no directory that exists; make {path.parent} first")


def prediction_intervals(
    grams: GramMatrices,
    target: int,
    coefficients: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    level: float = 0.95,
) -> PredictionIntervals:
    """Work out how far parameters may lie from their least-squares lines at a target.

    The interval for a new observation in simple linear regression, ŵ ± t·s·√(1 + 1/T + (s* − s̄)²/S) with
    t = t_{1−α/2, T−2}, s² = SSE/(T − 2) (Draper and Smith, Applied Regression Analysis, 3rd ed., 3.1).  What a
    tensor's parameters have in the mean follows from its Gram matrix: Σ SSE = tr(P·G), P the projection onto
    what no line explains.

    The textbook assumes residuals that are independent, normal and as large at the target as in the window.
    Weights of a run wander: their residuals hang together, so the true spread far from the window is larger;
    what the run's own past says of it is the backtest's business.

    Parameters
    ----------
    grams : GramMatrices
        Of the window, at least 3 steps.
    target : int
    coefficients : dict of str to numpy.ndarray, optional
        ``(T,) float64`` of each tensor's prediction, whose move the widths are compared with; default those of
        the line itself.
    level : float

    Raises
    ------
    InputError
        If there are fewer than 3 steps, which leave no residual, or the level is no probability.
    """
    num_steps = len(grams.steps)
    if num_steps < MIN_STEPS:
        raise InputError(
            f"prediction intervals need at least {MIN_STEPS} checkpoints, and {num_steps} were selected: "
            "a line leaves two no residual"
        )
    steps = np.array(grams.steps, np.float64)
    centred = steps - steps.mean()
    degrees = num_steps - 2
    quantile = two_sided_quantile(level, degrees)
    leverage = 1.0 + 1.0 / num_steps + (target - steps.mean()) ** 2 / (centred @ centred)
    line = 1.0 / num_steps + centred * (target - steps.mean()) / (centred @ centred)
    # Orthonormal columns: the constant, and the step.
    explained = np.stack([np.full(num_steps, num_steps**-0.5), centred / np.sqrt(centred @ centred)], axis=1)
    projection = np.eye(num_steps) - explained @ explained.T
    sums = []
    for name, matrix in grams.matrices.items():
        move = (line if coefficients is None else coefficients[name]).copy()
        move[-1] -= 1.0
        # Rounding of G may leave less than nothing.
        squared_error = max(float((projection * matrix).sum()), 0.0)
        sums.append((name, grams.num_params[name], squared_error, max(float(move @ matrix @ move), 0.0)))

    def interval(name: str, num_params: int, squared_error: float, squared_move: float) -> TensorInterval:
        residual = math.sqrt(squared_error / (degrees * max(num_params, 1)))
        half_width = quantile * residual * math.sqrt(leverage)
        moved = math.sqrt(squared_move / max(num_params, 1))
        return TensorInterval(
            name, num_params, residual, half_width, moved, half_width / moved if moved else None
        )

    return PredictionIntervals(
        target=target,
        steps=grams.steps,
        level=level,
        degrees=degrees,
        quantile=quantile,
        leverage=float(leverage),
        tensors=tuple(interval(*of_tensor) for of_tensor in sums),
        model=interval(
            "model",
            sum(of_tensor[1] for of_tensor in sums),
            sum(of_tensor[2] for of_tensor in sums),
            sum(of_tensor[3] for of_tensor in sums),
        ),
    )
