"""What a method is: a pure function from steps, a target and Gram matrices to coefficients.

`Method` is the function, `MethodEntry` what the registry knows of it, `MethodSpec` the method with its
parameters bound, as ``--method`` names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ckptlin.errors import InputError

__all__ = ["Method", "MethodEntry", "MethodSpec", "Parameter", "check_gram", "check_steps"]


class Method(Protocol):
    """Predicts the checkpoint at a target step as an affine combination of the observed ones."""

    def __call__(
        self,
        steps: np.ndarray[Any, Any],
        target: float,
        gram: np.ndarray[Any, Any] | None = None,
        pooled: np.ndarray[Any, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Return the coefficients.

        Parameters
        ----------
        steps : numpy.ndarray
            ``(T,) float64``, strictly ascending.
        target : float
            Step to predict; may lie between or before the observed ones.
        gram : numpy.ndarray or None
            ``(T, T) float64`` of inner products of w_t − w_1 of one tensor, or ``(..., T, T)`` of many; methods
            that depend on the steps alone ignore it.
        pooled : numpy.ndarray or None
            ``(T, T) float64`` of the whole model, the sum over its tensors; for methods that lean on it where
            a tensor alone says little.

        Returns
        -------
        numpy.ndarray
            ``(T,) float64`` that sum to 1; ``(..., T)`` for many tensors, or ``(T,)`` still where the
            coefficients are the same for all.
        """
        ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method.

    Attributes
    ----------
    name : str
    default : int or float or str
        Its type is the parameter's; a string names another method.
    description : str
        A few words.
    low, high : float
        Bounds, both allowed.
    """

    name: str
    default: int | float | str
    description: str
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method and what goes with it: what the entry points of the group ``ckptlin.methods`` name.

    Attributes
    ----------
    name : str
    function : callable
        A `Method` that takes its parameters as keywords besides.
    description : str
        One line.
    parameters : tuple of Parameter
    min_steps : int or callable
        Fewest checkpoints that it works on; may be a function of the parameters' values, as keywords.
    needs_gram : bool
        Whether it cannot do without ``gram``.
    is_linear : bool
        Whether it returns the exact continuation of a trajectory that is linear in the step.
    keep : tuple of str
        Patterns of tensors that keep their last value unless the user says otherwise.
    """

    name: str
    function: Callable[..., np.ndarray[Any, Any]]
    description: str
    parameters: tuple[Parameter, ...] = ()
    min_steps: int | Callable[..., int] = 2
    needs_gram: bool = False
    is_linear: bool = True
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class MethodSpec:
    """A method with its parameters: what ``--method wls:decay=0.7`` means.

    Made by `ckptlin.methods.parse_method`.  It is a `Method` itself, and can be called as one.

    Attributes
    ----------
    entry : MethodEntry
    values : tuple
        Of the parameters, in the entry's order: int, float, or a `MethodSpec`.
    """

    entry: MethodEntry
    values: tuple["int | float | MethodSpec", ...] = ()

    @property
    def name(self) -> str:
        """The name that the method is registered under."""
        return self.entry.name

    @property
    def parameters(self) -> Mapping[str, "int | float | MethodSpec"]:
        """Value of each parameter, by its name."""
        return {p.name: value for p, value in zip(self.entry.parameters, self.values, strict=True)}

    @property
    def description(self) -> str:
        """One line."""
        return self.entry.description

    @property
    def needs_gram(self) -> bool:
        """Whether it cannot do without ``gram``."""
        return self.entry.needs_gram or any(v.needs_gram for v in self.values if isinstance(v, MethodSpec))

    @property
    def is_linear(self) -> bool:
        """Whether it returns the exact continuation of a trajectory that is linear in the step."""
        return self.entry.is_linear and all(v.is_linear for v in self.values if isinstance(v, MethodSpec))

    @property
    def keep(self) -> tuple[str, ...]:
        """Patterns of tensors that keep their last value unless the user says otherwise."""
        return self.entry.keep

    @property
    def min_steps(self) -> int:
        """Fewest checkpoints that it works on."""
        if callable(self.entry.min_steps):
            return self.entry.min_steps(**self.parameters)
        inner = [v.min_steps for v in self.values if isinstance(v, MethodSpec)]
        return max([self.entry.min_steps, *inner])

    def coefficients(
        self,
        steps: Any,
        target: float,
        gram: np.ndarray[Any, Any] | None = None,
        pooled: np.ndarray[Any, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Return the coefficients, as `Method` describes them.

        Raises
        ------
        InputError
            If there are fewer checkpoints than it needs, or the Gram matrix that it needs is missing or not
            finite.
        """
        observed = np.asarray(steps, np.float64)
        check_steps(self.name, observed, self.min_steps)
        if self.needs_gram:
            check_gram(self.name, observed, gram)
        return self.entry.function(observed, float(target), gram, pooled, **self.parameters)

    def __call__(
        self,
        steps: np.ndarray[Any, Any],
        target: float,
        gram: np.ndarray[Any, Any] | None = None,
        pooled: np.ndarray[Any, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Do what `coefficients` does."""
        return self.coefficients(steps, target, gram, pooled)

    def __repr__(self) -> str:
        """Write it as a call that means it."""
        return f"parse_method({str(self)!r})"

    def __str__(self) -> str:
        """Write it as ``--method`` takes it, with every parameter."""
        return self._text({name: _text_of(value) for name, value in self.parameters.items()})

    @property
    def short(self) -> str:
        """Write it as ``--method`` takes it, without the parameters that have their default."""
        texts = {
            name: value.short if isinstance(value, MethodSpec) else _text_of(value)
            for name, value in self.parameters.items()
        }
        defaults = {parameter.name: _text_of(parameter.default) for parameter in self.entry.parameters}
        return self._text({name: text for name, text in texts.items() if text != defaults[name]})

    def _text(self, texts: Mapping[str, str]) -> str:
        # A method among the values comes last: all that follows it is its own.
        ordered = sorted(texts, key=lambda name: isinstance(self.parameters[name], MethodSpec))
        listed = ",".join(f"{name}={texts[name]}" for name in ordered)
        return f"{self.name}:{listed}" if listed else self.name


def check_steps(name: str, steps: np.ndarray[Any, Any], at_least: int = 2) -> None:
    """Raise `InputError` if a method has fewer checkpoints than it needs."""
    if steps.size < at_least:
        selected = "only one was" if steps.size == 1 else f"only {steps.size} were"
        needed = f"{at_least} checkpoint" + ("" if at_least == 1 else "s")
        raise InputError(f"method {name} needs at least {needed}, and {selected} selected")


def check_gram(
    name: str, steps: np.ndarray[Any, Any], gram: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    """Return the Gram matrix; raise `InputError` if it is missing, of the wrong shape or not finite."""
    if gram is None:
        raise InputError(f"method {name} needs the Gram matrix of each tensor, and none was given")
    if gram.shape[-2:] != (steps.size, steps.size):
        raise InputError(
            f"method {name} was given a Gram matrix of shape {gram.shape} for {steps.size} checkpoints"
        )
    if not np.isfinite(gram).all():
        raise InputError(f"method {name} was given a Gram matrix with NaN or infinity in it")
    return gram


def _text_of(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
