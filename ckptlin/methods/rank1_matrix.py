"""``rank1-matrix``: the one method that is not affine in the checkpoints."""

from dataclasses import dataclass

from ckptlin.errors import InputError, SelectionError

__all__ = ["Rank1Matrix", "parse_rank1_matrix"]

_NAME = "rank1-matrix"


@dataclass(frozen=True, slots=True)
class Rank1Matrix:
    """Extend the first singular component of each matrix's update along a straight line.

    With the update ΔW = W_T − W_1 = Σ_i σ_i·u_i·v_iᵀ of a matrix and α = (s − s_1)/(s_T − s_1)

    - ``rest=1``: Ŵ(s) = W_T + (α − 1)·σ_1·u_1·v_1ᵀ; the other components stay as far as they have come;
    - ``rest=0``: Ŵ(s) = W_1 + α·σ_1·u_1·v_1ᵀ; they are taken back, as in AlphaRL (arXiv 2510.00553), which
      found the first component alone to carry the gain in reasoning.  (AlphaRL rescales the component to the
      norm of the whole update, and regresses its direction on the reward; neither is done here.)

    Vectors and scalars have an update of rank one, so they follow the line of ``two-point``; a stack of
    matrices (fused experts, three dimensions) is taken matrix by matrix; see `ckptlin.rank_one.as_matrices`.

    Attributes
    ----------
    rest : bool
        Whether the other components stay.
    """

    rest: bool = True

    name = _NAME
    description = "the first singular component of each matrix's update, extended linearly (AlphaRL)"
    keep = ()
    min_steps = 2

    def __str__(self) -> str:
        return f"{_NAME}:rest={int(self.rest)}"

    @property
    def short(self) -> str:
        """Write it as ``--method`` takes it, without the parameter if it has its default."""
        return _NAME if self.rest else str(self)

    def factor(self, first: int, last: int, target: int) -> float:
        """Return what the first component is added with: α − 1 to the last checkpoint, or α to the first."""
        alpha = (target - first) / (last - first)
        return alpha - 1.0 if self.rest else alpha


def parse_rank1_matrix(text: str) -> Rank1Matrix | None:
    """Read ``rank1-matrix`` or ``rank1-matrix:rest=0``; None if that is another method's name.

    Raises
    ------
    SelectionError
        If it has no such parameter.
    InputError
        If the value is neither 0 nor 1.

    Examples
    --------
    >>> str(parse_rank1_matrix("rank1-matrix"))
    'rank1-matrix:rest=1'
    """
    name, has_parameters, listed = text.strip().partition(":")
    if name != _NAME:
        return None
    if not has_parameters:
        return Rank1Matrix()
    key, _, value = (part.strip() for part in listed.partition("="))
    if key != "rest":
        raise SelectionError(f"method {_NAME} has no parameter {key!r}; it has rest")
    if value not in ("0", "1"):
        raise InputError(f"rest={value} of method {_NAME} must be 0 or 1")
    return Rank1Matrix(rest=value == "1")
