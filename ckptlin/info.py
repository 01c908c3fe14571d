"""What a store holds."""

from dataclasses import dataclass
from typing import Any

from ckptlin.errors import SelectionError
from ckptlin.fit import plan_fit
from ckptlin.segments import jumps_among, segments_to_dict
from ckptlin.selection import fitted_tensors, select_rows
from ckptlin.store.metadata import FitRecord, GramRecord
from ckptlin.store.store import TrajectoryStore

__all__ = ["StoreInfo", "info"]


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    Attributes
    ----------
    raw_bytes, stored_bytes : int
        Weights as they lie in the checkpoints, and as they lie in the store.
    dtypes : dict of str to int
        Parameters of each element type.
    segments : tuple of list of int
        The steps, divided where training was skipped by extrapolation.
    jumps : tuple of dict
        Where that was: ``from``, ``to``, ``method``.
    fits : list of dict
        Name, steps, maps of each fit; ``state`` is ``current``, ``partial`` (steps were added since) or
        ``stale`` (its checkpoints were replaced); ``crosses_jump`` whether its steps cross a jump.
    gram : dict or None
        Steps and state of the Gram matrices, as of a fit.
    fit_memory_bytes, fit_bytes_in : int or None
        Projected peak of a fit with all processors, and what it reads; None where there is nothing to fit: with
        fewer than two steps, or no tensor of weights.
    """

    location: str
    created_by: str
    commit: int
    steps: tuple[int, ...]
    segments: tuple[list[int], ...]
    jumps: tuple[dict[str, Any], ...]
    sources: tuple[str, ...]
    num_tensors: int
    num_params: int
    num_fitted: int
    dtypes: dict[str, int]
    raw_bytes: int
    stored_bytes: int
    chunk_steps: int
    codec: str
    tied: dict[str, str]
    architectures: tuple[str, ...]
    files: tuple[str, ...]
    fits: tuple[dict[str, Any], ...]
    gram: dict[str, Any] | None
    fit_memory_bytes: int | None
    fit_bytes_in: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()
        }


def info(store: TrajectoryStore, *, steps: str | None = None) -> StoreInfo:
    """Gather what `ckptlin info` shows; reads no weights.

    ``steps`` is the window (`ckptlin.selection.select_rows`) that a fit is planned for; default all.
    """
    record = store.record
    specs = store.tensors.values()
    dtypes: dict[str, int] = {}
    for spec in specs:
        dtypes[spec.dtype.zarr] = dtypes.get(spec.dtype.zarr, 0) + spec.num_params
    try:
        fitted = fitted_tensors(store)
    except SelectionError:
        fitted = []
    divided = segments_to_dict(store.steps, store.jumps)
    num_selected = len(select_rows(store.steps, steps))
    plan = plan_fit(store, steps=steps, memory_bytes=1 << 60) if fitted and num_selected > 1 else None
    return StoreInfo(
        location=store.location,
        created_by=record.created_by,
        commit=record.commit,
        steps=store.steps,
        segments=tuple(divided["segments"]),
        jumps=tuple(divided["jumps"]),
        sources=tuple(c.source for c in store.checkpoints),
        num_tensors=len(store.tensors),
        num_params=sum(t.num_params for t in specs),
        num_fitted=sum(t.num_params for t in fitted),
        dtypes=dtypes,
        raw_bytes=sum(t.num_bytes for t in specs) * len(store.steps),
        stored_bytes=store.num_stored_bytes(),
        chunk_steps=record.chunk_steps,
        codec=record.compressor.name,
        tied=dict(store.tied),
        architectures=tuple((record.config or {}).get("architectures") or ()),
        files=tuple(store.checkpoints[-1].sidecars),
        fits=tuple(_describe_fit(store, name) for name in record.fits),
        gram=_describe_gram(store),
        fit_memory_bytes=plan.memory.peak_bytes if plan else None,
        fit_bytes_in=plan.bytes_in if plan else None,
    )


def _describe_fit(store: TrajectoryStore, name: str) -> dict[str, Any]:
    fit = store.record.fits[name]
    return {
        "name": name,
        "steps": list(fit.steps),
        "crosses_jump": bool(jumps_among(fit.steps, store.jumps)),
        "tensors": len(fit.tensors),
        "maps": dict(fit.maps),
        "commit": fit.commit,
        "created_by": fit.created_by,
        "state": _state(store, fit),
    }


def _describe_gram(store: TrajectoryStore) -> dict[str, Any] | None:
    gram = store.record.gram
    if gram is None:
        return None
    return {
        "steps": list(gram.steps),
        "crosses_jump": bool(jumps_among(gram.steps, store.jumps)),
        "tensors": len(gram.tensors),
        "commit": gram.commit,
        "created_by": gram.created_by,
        "state": _state(store, gram),
    }


def _state(store: TrajectoryStore, record: FitRecord | GramRecord) -> str:
    if store.is_stale(record):
        return "stale"
    return "partial" if store.steps[-1] > record.steps[-1] else "current"
