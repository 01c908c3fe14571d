"""How messages about checkpoints name several things at once."""

from collections.abc import Iterable

__all__ = ["name_some"]


def name_some(names: Iterable[str]) -> str:
    """Name the first three, and say how many more there are.

    Examples
    --------
    >>> name_some(["a", "b"]), name_some("abcdef")
    ('`a`, `b`', '`a`, `b`, `c` and 3 more')
    """
    names = list(names)
    listed = ", ".join(f"`{name}`" for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
