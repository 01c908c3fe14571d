"""Which steps and which tensors an operation works on."""

from collections.abc import Sequence

from ckptlin.checkpoints import RunTrajectories
from ckptlin.dtypes import is_fitted
from ckptlin.errors import InputError, SelectionError
from ckptlin.naming import is_buffer, select
from ckptlin.segments import segments_of
from ckptlin.store.layout import MAX_CHUNK_STEPS
from ckptlin.store.store import TrajectoryStore, describe_steps
from ckptlin.trajectory import TensorSpec, TrajectorySource

__all__ = ["describe_window", "fitted_tensors", "row_groups", "select_rows", "select_window"]


def select_rows(available: Sequence[int], window: str | None) -> tuple[int, ...]:
    """Select steps by a window; return their indices, ascending.

    Parameters
    ----------
    available : sequence of int
        Steps in ascending order.
    window : str or None
        ``FIRST:LAST`` or ``FIRST:LAST:STRIDE``, both ends included and either may be empty, or a list
        ``0,100,300``; None selects all.  With a stride, steps at multiples of it after the first are taken.

    Raises
    ------
    InputError
        If the window cannot be read.
    SelectionError
        If a listed step does not exist, or the window holds none.

    Examples
    --------
    >>> select_rows([0, 50, 100, 150, 200], "0:200:100"), select_rows([0, 50, 100], "50:")
    ((0, 2, 4), (1, 2))
    >>> select_rows([0, 50, 100], "0,100")
    (0, 2)
    """
    if window is None:
        return tuple(range(len(available)))
    try:
        if ":" not in window:
            wanted = sorted({int(part) for part in window.split(",")})
        else:
            first, last, *stride = (int(part) if part.strip() else None for part in window.split(":"))
            if len(stride) > 1 or (stride and (stride[0] is None or stride[0] < 1)):
                raise ValueError
            start = available[0] if first is None else first
            wanted = [
                step
                for step in available
                if start <= step
                and (last is None or step <= last)
                and (not stride or (step - start) % (stride[0] or 1) == 0)
            ]
    except ValueError:
        raise InputError(
            f"--steps {window!r} is no window; write FIRST:LAST, FIRST:LAST:STRIDE or a list such as 0,100,300"
        ) from None
    for step in wanted:
        if step not in available:
            raise SelectionError(
                f"step {step} of --steps {window} does not exist among {describe_steps(available)}"
            )
    if not wanted:
        raise SelectionError(f"--steps {window} selects nothing among {describe_steps(available)}")
    return tuple(available.index(step) for step in wanted)


def select_window(
    source: TrajectorySource, steps: str | None = None, segment: int | str | None = None
) -> tuple[int, ...]:
    """Select the steps of a source by a window, or by one of its segments; return their rows, ascending.

    Parameters
    ----------
    source : TrajectorySource
    steps : str, optional
        Window, see `select_rows`.
    segment : int or str, optional
        Number of a segment (`ckptlin.segments`), from 1 on, or ``last``.  Without jumps there is one.

    Raises
    ------
    InputError
        If both are given, or one cannot be read.
    SelectionError
        If a step or the segment does not exist, or the window holds no step.
    """
    if segment is None:
        return select_rows(source.steps, steps)
    if steps is not None:
        raise InputError(
            f"--steps {steps} and --segment {segment} both choose the steps to use; leave one of them out"
        )
    parts = segments_of(source.steps, source.jumps)
    wanted = str(segment).strip()
    number = len(parts) if wanted == "last" else int(wanted) if wanted.isdecimal() else 0
    if number < 1:
        raise InputError(f"--segment {wanted!r} is no segment; write its number, from 1 on, or last")
    if number > len(parts):
        there = "; ".join(f"{i}: {describe_steps(part)}" for i, part in enumerate(parts, start=1))
        noun = "segment" if len(parts) == 1 else "segments"
        raise SelectionError(
            f"segment {number} does not exist; {source.location} has {len(parts)} {noun} ({there})"
        )
    first = sum(map(len, parts[: number - 1]))
    return tuple(range(first, first + len(parts[number - 1])))


def describe_window(steps: str | None, segment: int | str | None) -> str:
    """Name the option that selected steps, empty if none did: ``--steps 0:100``, ``--segment last``."""
    if segment is not None:
        return f"--segment {segment}"
    return "" if steps is None else f"--steps {steps}"


def fitted_tensors(
    source: TrajectorySource, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[TensorSpec]:
    """Select the tensors that take part in a fit, in file order.

    Left out are integers, booleans, float8, buffers, tensors without elements, and names tied to another
    tensor, whose parameters would count twice.

    Raises
    ------
    SelectionError
        If a pattern matches nothing, or nothing is left.
    """
    names = select(source.tensors, include, exclude)
    specs = [source.tensors[name] for name in names]
    fitted = [
        t
        for t in specs
        if is_fitted(t.dtype) and t.num_params and not is_buffer(t.name) and t.name not in source.tied
    ]
    if not fitted:
        raise SelectionError(
            f"no tensor of {source.location} is left to fit: none of those selected holds weights"
        )
    return fitted


def row_groups(source: TrajectoryStore | RunTrajectories, rows: Sequence[int]) -> list[list[int]]:
    """Group rows as they are read together: by rows of chunks in a store, by 16 otherwise."""
    if not isinstance(source, TrajectoryStore):
        return [list(rows[lo : lo + MAX_CHUNK_STEPS]) for lo in range(0, len(rows), MAX_CHUNK_STEPS)]
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(row // source.record.chunk_steps, []).append(row)
    return list(groups.values())
