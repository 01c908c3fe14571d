"""The two populations that every R² figure is given for.

*Moved*: every parameter whose bits changed between any two of the steps.  *Paper*: the filter of
arXiv 2601.04537, parameters whose range over the steps exceeds 1e-4 and that take at least 4 distinct values.
"""

__all__ = ["PAPER_MIN_DISTINCT", "PAPER_MIN_RANGE", "POPULATIONS"]

POPULATIONS = ("moved", "paper")
PAPER_MIN_RANGE = 1e-4
PAPER_MIN_DISTINCT = 4
