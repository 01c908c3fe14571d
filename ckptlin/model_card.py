"""What an extrapolated checkpoint says of itself: ``ckptlin.json`` and a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from ckptlin._version import __version__
from ckptlin.checkpoints import RunTrajectories
from ckptlin.methods import parse_method
from ckptlin.store.store import TrajectoryStore

__all__ = ["model_card", "provenance"]


def provenance(
    *,
    source: TrajectoryStore | RunTrajectories,
    plan: Mapping[str, Any],
    window: Sequence[int],
    rules: Mapping[str, str],
    dtype: str | None,
    num_params: int,
    num_lost: int,
    num_gated: int,
) -> dict[str, Any]:
    """Return the content of ``ckptlin.json``."""
    fingerprints: dict[str, str] = {}
    if isinstance(source, TrajectoryStore):
        fingerprints = {str(c.step): c.fingerprint for c in source.checkpoints if c.step in plan["steps"]}
        origins = {str(c.step): c.source for c in source.checkpoints if c.step in plan["steps"]}
    else:
        origins = {str(c.step): str(c.path) for c in source.checkpoints if c.step in plan["steps"]}
    return {
        "created_by": f"ckptlin {__version__}",
        "source": source.location,
        "step": plan["step"],
        "method": plan["method"],
        "window": list(window),
        "steps": plan["steps"],
        "coefficients": plan["coefficients"],
        "checkpoints": origins,
        "fingerprints": fingerprints,
        "keep": plan["keep"],
        "min_r2": plan["min_r2"],
        "dtype": dtype or "as the source",
        "params_extrapolated": num_params,
        "params_unchanged_by_rounding": num_lost,
        "params_held_by_gate": num_gated,
        "tensors": dict(rules),
    }


def model_card(record: Mapping[str, Any], warnings: Sequence[str]) -> str:
    """Return a model card in Markdown, from the record."""
    num = record["params_extrapolated"]
    lost = record["params_unchanged_by_rounding"]
    kept = sum(rule == "keep" for rule in record["tensors"].values())
    used = [step for step, a in zip(record["steps"], record["coefficients"], strict=True) if a != 0.0]
    is_copy = record["steps"] == used == [record["step"]]
    checkpoints = (
        f"{len(used)} checkpoints at steps {used[0]} to {used[-1]}" if len(used) > 1 else f"step {used[0]}"
    )
    if is_copy:
        title = f"Step {record['step']}, copied"
        origin = (
            f"These weights are those of an observed checkpoint, step {record['step']} of "
            f"`{record['source']}`, bit for bit: at that step `{record['method']}` predicts nothing else. "
            f"Written by {record['created_by']}."
        )
    else:
        title = f"Step {record['step']}, extrapolated"
        origin = (
            f"These weights were not trained. {record['created_by']} predicted them for step {record['step']} "
            f"from {checkpoints} of `{record['source']}`, by `{record['method']}`: "
            f"{parse_method(record['method']).description}."
        )
    share = f" ({lost / num:.1%})" if num else ""
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- ckptlin",
        *([] if is_copy else ["- extrapolated"]),
        "---",
        "",
        f"# {title}",
        "",
        origin,
        "",
        "| | |",
        "|---|---|",
        f"| parameters extrapolated | {num:,} |",
        f"| of these, left as in the last checkpoint by rounding | {lost:,}{share} |",
        f"| of these, held at the last checkpoint by the R² gate | {record['params_held_by_gate']:,} |",
        f"| tensors kept at the last checkpoint | {kept} ({', '.join(record['keep']) or 'no pattern'}) |",
        f"| dtype | {record['dtype']} |",
        "",
    ]
    lines += [f"**Warning:** {warning}.\n" for warning in warnings]
    lines.append("Coefficients, source checkpoints and the rule of every tensor are in `ckptlin.json`.")
    return "\n".join(lines) + "\n"
