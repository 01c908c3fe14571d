"""What an extrapolated checkpoint says of itself: ``ckptlin.json`` and a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from ckptlin._version import __version__
from ckptlin.block_extrapolate import Losses
from ckptlin.extrapolate_plan import ExtrapolationPlan
from ckptlin.store.store import TrajectoryStore

__all__ = ["model_card", "provenance"]


def provenance(
    *, plan: ExtrapolationPlan, dtype: str | None, num_params: int, losses: Losses
) -> dict[str, Any]:
    """Return the content of ``ckptlin.json``."""
    source = plan.source
    shown = plan.to_dict()
    fingerprints: dict[str, str] = {}
    if isinstance(source, TrajectoryStore):
        fingerprints = {str(c.step): c.fingerprint for c in source.checkpoints if c.step in plan.steps}
        origins = {str(c.step): c.source for c in source.checkpoints if c.step in plan.steps}
    else:
        origins = {str(c.step): str(c.path) for c in source.checkpoints if c.step in plan.steps}
    record = {
        "created_by": f"ckptlin {__version__}",
        "source": source.location,
        "step": plan.target,
        "method": plan.method_text,
        "method_description": "" if plan.method is None else plan.method.description,
        "window": list(plan.window),
        "steps": shown["steps"],
        "coefficients": shown["coefficients"],
        "checkpoints": origins,
        "fingerprints": fingerprints,
        "keep": shown["keep"],
        "min_r2": plan.min_r2,
        "dtype": dtype or "as the source",
        "params_extrapolated": num_params,
        "params_unchanged_by_rounding": losses.num_lost,
        "params_held_by_gate": losses.num_gated,
        "tensors": dict(plan.rules),
    }
    if plan.rank_one is not None:
        record["rank_one"] = {**shown["rank_one"], "unconverged_matrices": losses.num_unconverged}
    return record


def model_card(record: Mapping[str, Any], warnings: Sequence[str]) -> str:
    """Return a model card in Markdown, from the record."""
    num = record["params_extrapolated"]
    lost = record["params_unchanged_by_rounding"]
    kept = sum(rule == "keep" for rule in record["tensors"].values())
    used = _used_steps(record)
    is_copy = set(record["tensors"].values()) == {"copy"} and len(used) == 1
    checkpoints = (
        f"{len(used)} checkpoints at steps {used[0]} to {used[-1]}" if len(used) > 1 else f"step {used[0]}"
    )
    if is_copy:
        title = f"Step {used[0]}, copied"
        origin = (
            f"These weights are those of an observed checkpoint, step {used[0]} of `{record['source']}`, "
            f"bit for bit: for step {record['step']} `{record['method']}` predicts nothing else. "
            f"Written by {record['created_by']}."
        )
    else:
        title = f"Step {record['step']}, extrapolated"
        origin = (
            f"These weights were not trained. {record['created_by']} predicted them for step {record['step']} "
            f"from {checkpoints} of `{record['source']}`, by `{record['method']}`: "
            f"{record['method_description']}."
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


def _used_steps(record: Mapping[str, Any]) -> list[int]:
    """Return the steps that the weights were predicted from."""
    coefficients = record["coefficients"]
    if coefficients is None:
        steps: list[int] = record["rank_one"]["update_of"]
        return steps
    vectors = list(coefficients.values()) if isinstance(coefficients, Mapping) else [coefficients]
    return [step for i, step in enumerate(record["steps"]) if any(vector[i] != 0.0 for vector in vectors)]
