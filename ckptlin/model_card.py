"""What an extrapolated checkpoint says of itself: ``ckptlin.json`` and a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from ckptlin._version import __version__
from ckptlin.block_extrapolate import Losses
from ckptlin.extrapolate_plan import ExtrapolationPlan
from ckptlin.intervals import PredictionIntervals
from ckptlin.store.store import TrajectoryStore

__all__ = ["model_card", "provenance"]


def provenance(
    *,
    plan: ExtrapolationPlan,
    dtype: str | None,
    num_params: int,
    losses: Losses,
    widths: PredictionIntervals | None = None,
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
    record: dict[str, Any] = {
        "created_by": f"ckptlin {__version__}",
        "source": source.location,
        "step": plan.target,
        "method": plan.method_text,
        "method_description": "" if plan.method is None else plan.method.description,
        "auto": plan.is_auto,
        "reason": plan.reason,
        "window": list(plan.window),
        "steps": shown["steps"],
        **{name: shown[name] for name in ("segments", "crosses_jump", "jumps")},
        "coefficients": shown["coefficients"],
        "checkpoints": origins,
        "fingerprints": fingerprints,
        "keep": shown["keep"],
        "min_r2": plan.min_r2,
        "dtype": dtype or "as the source",
        "params_extrapolated": num_params,
        "params_unchanged_by_rounding": losses.num_lost,
        "params_held_by_gate": losses.num_gated,
        "expected": shown["expected"],
        "interval": None
        if widths is None
        else {"level": widths.level, "degrees_of_freedom": widths.degrees, **widths.model.to_dict()},
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
        *([] if is_copy else _expectations(record)),
        "",
    ]
    if record["auto"]:
        lines.append(f"The method was chosen by `auto`: {record['reason']}.\n")
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


def _expectations(record: Mapping[str, Any]) -> list[str]:
    """Return the rows that say how far the weights can be trusted."""
    expected, interval = record["expected"], record["interval"]
    rows = []
    if expected is not None and expected["skill"] is not None:
        spread = "" if expected["std"] is None else f" ± {expected['std']:.2f}"
        origins = f"{expected['num_origins']} origin{'' if expected['num_origins'] == 1 else 's'}"
        rows.append(
            "| skill to expect (0: the last checkpoint, 1: the trained one) | "
            f"{expected['skill']:.2f}{spread}, from {origins} of the run's own past that reached "
            f"{expected['in_predictions_of_reach']:.2f} spans; this is {expected['reach']:.2f} |"
        )
        if expected["skill_after_rounding"] is not None:
            rows.append(
                f"| the same after rounding to the dtype | {expected['skill_after_rounding']:.2f} "
                f"({expected['rounding_ratio']:.2f} of the squared error) |"
            )
        if expected["ceiling"] is not None:
            rows.append(f"| skill that rounding of the checkpoints allows | {expected['ceiling']:.2f} |")
    if interval is not None:
        relative = "" if interval["relative"] is None else f", {interval['relative']:.2f} of the predicted move"
        rows.append(
            f"| half width of {interval['level']:.0%} prediction intervals (root mean square) | "
            f"{interval['half_width_rms']:.2e}{relative} |"
        )
    return rows
