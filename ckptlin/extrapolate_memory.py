"""How much memory an extrapolation takes, and how much of it a rank-one search may hold a matrix in."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckptlin.checkpoints import RunTrajectories
from ckptlin.kernels.rank_one import WIDTH
from ckptlin.memory import MemoryPlan
from ckptlin.rank_one import MAX_PASSES, as_matrices
from ckptlin.selection import row_groups
from ckptlin.store.store import TrajectoryStore

__all__ = ["figures_bytes", "pair_bytes", "plan_memory"]


def plan_memory(
    source: TrajectoryStore | RunTrajectories,
    rules: Mapping[str, str],
    rows: Sequence[int],
    budget: int,
    num_workers: int,
    *,
    is_gated: bool,
    is_searched: bool,
    extra_bytes: int,
) -> tuple[MemoryPlan, int]:
    """Plan the memory of a prediction from ``rows``, and how much of it a search may hold a matrix in."""
    block_bytes = _widest_block(source, rows, is_gated=is_gated, is_moved=is_searched)
    if not is_searched:
        plan = MemoryPlan.within(budget, "extrapolate", block_bytes, num_workers, extra_bytes=extra_bytes)
        return plan, 0
    searched = [name for name, rule in rules.items() if rule == "extrapolate"]
    worker_bytes = block_bytes + max((_search_bytes(source, name) for name in searched), default=0)
    plan = MemoryPlan.within(
        budget, "extrapolate --method rank1-matrix", worker_bytes, num_workers, extra_bytes=extra_bytes
    )
    # What the budget leaves goes to matrices that are then read once; those that are larger are streamed.
    largest = max((pair_bytes(source, name) for name in searched), default=0)
    held_bytes = min((budget - plan.peak_bytes) // plan.num_workers, largest)
    return replace(plan, worker_bytes=worker_bytes + held_bytes), held_bytes


def _widest_block(
    source: TrajectoryStore | RunTrajectories, rows: Sequence[int], *, is_gated: bool, is_moved: bool
) -> int:
    """Bytes that the largest block takes while it is predicted."""
    widest = 1
    size = source.record.chunk_steps * 2 if isinstance(source, TrajectoryStore) else min(len(rows), 16)
    # Rows that are read together are regressed together, and nothing is kept between groups.
    is_gated = is_gated and len(row_groups(source, rows)) > 1
    for spec in source.tensors.values():
        num_params = max((block.num_params for block in source.blocks(spec.name)), default=0)
        state = 7 * 8 + 7 * spec.dtype.itemsize if is_gated else 0
        per_param = (size + 4) * spec.dtype.itemsize + 8 + 16 + state + (8 if is_moved else 0)
        widest = max(widest, num_params * per_param)
    return widest


def _search_bytes(source: TrajectoryStore | RunTrajectories, tensor: str) -> int:
    """Bytes of a rank-one search besides the block in flight: Krylov space, vectors, a piece of whole rows."""
    spec = source.tensors[tensor]
    num_matrices, num_rows, num_columns = as_matrices(spec.shape)
    krylov = 8 * num_columns * WIDTH * (MAX_PASSES + 4)
    vectors = 8 * num_matrices * (num_rows + num_columns)
    piece = max((block.num_params for block in source.blocks(tensor)), default=0) + num_columns
    return krylov + vectors + 2 * 2 * piece * spec.dtype.itemsize


def pair_bytes(source: TrajectoryStore | RunTrajectories, tensor: str) -> int:
    """Bytes of a matrix of a tensor in two checkpoints."""
    spec = source.tensors[tensor]
    _, num_rows, num_columns = as_matrices(spec.shape)
    return 2 * num_rows * num_columns * spec.dtype.itemsize


def figures_bytes(source: TrajectoryStore | RunTrajectories, num_steps: int) -> int:
    """Bytes of the tensors' Gram matrices and coefficients."""
    return 8 * len(source.tensors) * num_steps * (num_steps + 2)
