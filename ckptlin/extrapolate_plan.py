"""What an extrapolation would do, worked out before a weight is read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.backtest import choose
from ckptlin.block_rank_one import RankOneStep
from ckptlin.checkpoints import RunTrajectories, WeightFilePlan, plan_files
from ckptlin.checkpoints.output_directory import check_output
from ckptlin.coefficients import Coefficients, coefficients_of
from ckptlin.dtypes import TensorDType, from_zarr, is_fitted
from ckptlin.errors import InputError, SelectionError
from ckptlin.execution import available_workers
from ckptlin.expectation import Expected, expect
from ckptlin.extrapolate_memory import figures_bytes, pair_bytes, plan_memory
from ckptlin.gram import GramPlan, gram, plan_gram
from ckptlin.gram_matrices import GramMatrices
from ckptlin.intervals import MIN_STEPS, PredictionIntervals, prediction_intervals
from ckptlin.memory import MemoryPlan, default_budget
from ckptlin.methods import MethodSpec, parse_method
from ckptlin.methods.base import check_steps
from ckptlin.methods.rank1_matrix import Rank1Matrix, parse_rank1_matrix
from ckptlin.naming import is_buffer, matches, select
from ckptlin.rank_one import MAX_PASSES, as_matrices
from ckptlin.segments import segments_to_dict, warn_of_jumps
from ckptlin.selection import select_window
from ckptlin.store.store import TrajectoryStore, describe_steps
from ckptlin.template import Template, template_of
from ckptlin.trajectory import TensorSpec

__all__ = ["AUTO", "ExtrapolationPlan", "plan_extrapolation"]

AUTO = "auto"
# With two checkpoints there is one line, whatever the method.
_MIN_CHOICE = 3
# Beyond this multiple of the observed span the paper's own extrapolations collapse (its 600 → 1600).
_FAR = 2.0
# Beyond it float64 does not tell one step from the next.
_MAX_STEP = 1 << 53
_OUTPUT_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class ExtrapolationPlan:
    """What an extrapolation would do.

    Attributes
    ----------
    method : MethodSpec or Rank1Matrix or None
        None for ``auto`` until the Gram matrices are there.
    is_auto : bool
        Whether the method was, or is to be, chosen for the user.
    reason : str or None
        Why this one was chosen.
    expected : Expected or None
        What the method would have been worth in the run's past, where Gram matrices are at hand.
    window : tuple of int
        Steps that the method sees.
    coefficients : Coefficients or None
        None until the Gram matrices that they depend on are there.
    rank_one : RankOneStep or None
        What ``rank1-matrix`` adds to the weighted sum.
    rules : dict of str to str
        What happens to each tensor: ``extrapolate``, ``keep`` (a pattern names it), or ``copy`` (integers,
        booleans, buffers).
    exact : bool
        Whether the target is a single observed checkpoint, which is then copied bit for bit.
    grams : GramMatrices or None
        Of the window, where they are at hand.
    gram_plan : GramPlan or None
        The pass that has to compute them first.
    memory : MemoryPlan
        Of the extrapolation itself, once the Gram matrices are there.
    warnings : tuple of str
    """

    source: TrajectoryStore | RunTrajectories
    target: int
    out_dir: Path
    method: MethodSpec | Rank1Matrix | None
    is_auto: bool
    reason: str | None
    expected: Expected | None
    window: tuple[int, ...]
    window_rows: tuple[int, ...] = field(repr=False)
    coefficients: Coefficients | None
    rank_one: RankOneStep | None
    rules: Mapping[str, str]
    keep: tuple[str, ...]
    min_r2: float | None
    dtype: TensorDType | None
    exact: bool
    template: Template = field(repr=False)
    files: tuple[WeightFilePlan, ...] = field(repr=False)
    memory: MemoryPlan
    grams: GramMatrices | None = field(repr=False)
    gram_plan: GramPlan | None = field(repr=False)
    warnings: tuple[str, ...]

    @property
    def method_text(self) -> str:
        """The method as ``--method`` takes it, with every parameter; ``auto`` until it is chosen."""
        return AUTO if self.method is None else str(self.method)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the source that are read, of one tensor or another."""
        if self.coefficients is None or self.min_r2 is not None:
            return self.window_rows if self.coefficients is None else self.coefficients.rows
        rows = {*self.coefficients.used(), self.coefficients.rows[-1]}
        if self.rank_one is not None:
            rows |= {*self.rank_one.rows}
        return tuple(sorted(rows))

    @property
    def steps(self) -> tuple[int, ...]:
        """Step of each row."""
        return tuple(self.source.steps[row] for row in self.rows)

    @property
    def observed(self) -> tuple[int, ...]:
        """Steps that the weights follow from: the window, or the single checkpoint that is copied."""
        return self.steps if self.exact else self.window

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of tensors that a Gram pass leaves out."""
        return _matching(self.source, self.keep)

    def num_reads(self, tensor: str) -> int:
        """How often each parameter of a tensor is read, of all rows together.

        A search for a singular component counts as one pass over its two checkpoints; see `num_streamed`.
        """
        if self.rules[tensor] != "extrapolate":
            return 1
        if self.coefficients is None or self.min_r2 is not None:
            num_rows = len(self.rows)
        else:
            num_rows = len(self.coefficients.rows_of(tensor))
        return num_rows + (0 if self.rank_one is None else 2)

    @property
    def bytes_in(self) -> int:
        """Raw bytes of the trajectories to read, those for Gram matrices among them."""
        for_grams = 0 if self.gram_plan is None else self.gram_plan.bytes_in
        return for_grams + sum(spec.num_bytes * self.num_reads(n) for n, spec in self.source.tensors.items())

    @property
    def peak_bytes(self) -> int:
        """Projected peak of resident memory, of both passes if there are two."""
        for_grams = 0 if self.gram_plan is None else self.gram_plan.memory.peak_bytes
        return max(self.memory.peak_bytes, for_grams)

    @property
    def num_streamed(self) -> int:
        """Matrices that do not fit into memory, and are read once a pass of the rank-one search."""
        if self.rank_one is None:
            return 0
        return sum(
            as_matrices(spec.shape)[0]
            for name, spec in self.source.tensors.items()
            if self.rules[name] == "extrapolate" and pair_bytes(self.source, name) > self.rank_one.held_bytes
        )

    @property
    def bytes_out(self) -> int:
        """Bytes of weights to write."""
        return sum(file.num_bytes for file in self.files)

    def intervals(self) -> PredictionIntervals:
        """Return prediction-interval widths of every tensor that is extrapolated, beside its predicted move.

        Before rounding and the gate.
        """
        assert self.grams is not None  # noqa: S101 (they are computed where intervals are asked for)
        moves = None
        if self.coefficients is not None and self.rank_one is None:
            moves = {name: self.coefficients.over(name, self.window_rows) for name in self.grams.matrices}
        return prediction_intervals(self.grams, self.target, moves)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        coefficients = self.coefficients
        steps = self.steps
        if coefficients is not None:
            coefficients = coefficients.restricted(self.rows)
        plain: dict[str, Any] = {
            "source": self.source.location,
            "step": self.target,
            "out": str(self.out_dir),
            "method": self.method_text,
            "auto": self.is_auto,
            "reason": self.reason,
            "expected": None if self.expected is None else self.expected.to_dict(),
            "steps": list(steps),
            **segments_to_dict(self.observed, self.source.jumps),
            "coefficients": None
            if coefficients is None or self.rank_one is not None
            else coefficients.to_plain(),
            "keep": list(self.keep),
            "min_r2": self.min_r2,
            "tensors": {
                rule: sum(r == rule for r in self.rules.values()) for rule in ("extrapolate", "keep", "copy")
            },
            "bytes_in_for_gram": 0 if self.gram_plan is None else self.gram_plan.bytes_in,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "workers": self.memory.num_workers,
            "peak_memory_bytes": self.peak_bytes,
            "warnings": list(self.warnings),
        }
        if self.rank_one is not None:
            plain["rank_one"] = {
                "update_of": [self.source.steps[row] for row in self.rank_one.rows],
                "factor": self.rank_one.factor,
                "max_passes": MAX_PASSES,
                "streamed_matrices": self.num_streamed,
            }
        return plain


def plan_extrapolation(
    source: TrajectoryStore | RunTrajectories,
    target: int,
    out_dir: str | os.PathLike[str],
    *,
    method: str = AUTO,
    steps: str | None = None,
    segment: int | str | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    keep: Sequence[str] | None = None,
    min_r2: float | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    grams: GramMatrices | None = None,
    with_intervals: bool = False,
    memory_bytes: int | None = None,
    num_workers: int | None = None,
) -> ExtrapolationPlan:
    """Work out what `ckptlin.extrapolate.extrapolate` would do; same parameters and errors.

    ``with_intervals`` says that Gram matrices are needed for prediction intervals too.
    """
    if num_workers is not None and num_workers < 1:
        raise InputError(f"--workers must be at least 1, not {num_workers}")
    if min_r2 is not None and not 0.0 <= min_r2 <= 1.0:
        raise InputError(f"--min-r2 must lie between 0 and 1, not {min_r2}")
    if abs(target) > _MAX_STEP:
        raise InputError(f"--step {target} is no step; give one between -{_MAX_STEP} and {_MAX_STEP}")
    if dtype is not None and dtype not in _OUTPUT_DTYPES:
        raise InputError(f"--dtype {dtype!r} is not known; choose one of {', '.join(_OUTPUT_DTYPES)}")
    out = Path(out_dir)
    check_output(Path(os.path.realpath(out)), out, overwrite=overwrite)
    is_auto = method.strip() == AUTO
    spec = None if is_auto else parse_rank1_matrix(method) or parse_method(method)
    window = select_window(source, steps, segment)
    if from_step is not None or to_step is not None:
        if spec is None or spec.name != "two-point":
            raise InputError(f"--from and --to belong to the method two-point, not to {method}; use --steps")
        window = _between(source, window, from_step, to_step)
    observed = tuple(source.steps[row] for row in window)
    reason = None
    if spec is None:
        spec, reason = _without_choice(observed, target)
    if spec is not None:
        check_steps(spec.name, np.array(observed), spec.min_steps)
    if with_intervals and len(observed) < MIN_STEPS:
        raise InputError(f"--intervals needs at least {MIN_STEPS} checkpoints: a line leaves two no residual")
    output_dtype = None if dtype is None else from_zarr(dtype)
    # What auto uses was judged without any pattern.
    by_default = () if is_auto or spec is None else spec.keep
    patterns = tuple(by_default if keep is None else keep)
    if keep:
        select(dict.fromkeys([*source.tensors, *source.tied]), keep, option="--keep")
    rules = _rules(source, patterns)
    if spec is None and not _fitted(source, rules):
        spec, reason = parse_method("ols"), "no tensor is extrapolated"
    windowed, gram_plan = None, None
    if grams is not None:
        windowed = _windowed(source, grams, observed, rules)
    else:
        needed = with_intervals or spec is None or (isinstance(spec, MethodSpec) and spec.needs_gram)
        excluded = _matching(source, patterns)
        windowed, gram_plan = _grams(
            source, observed, rules, excluded, memory_bytes, num_workers, needed=needed
        )
    if spec is None and windowed is not None:
        verdict = choose(windowed, target)
        spec, reason = verdict.method, verdict.reason
    expected = None
    if isinstance(spec, MethodSpec) and windowed is not None:
        expected = expect(windowed, spec, target, dtype=output_dtype)
    coefficients, factor = _predictor(source, spec, window, target, windowed)
    only = None if coefficients is None or factor else coefficients.single_row()
    exact = only is not None and not patterns and output_dtype is None and min_r2 is None
    if coefficients is not None and only is not None and exact:
        coefficients = coefficients.restricted((only,))
        rules = dict.fromkeys(rules, "copy")
    _require_fitted(source, rules)
    if coefficients is not None and not exact and min_r2 is None:
        coefficients = coefficients.restricted(_needed(coefficients, window, factor))
    memory, held_bytes = plan_memory(
        source,
        rules,
        window if coefficients is None else coefficients.rows,
        default_budget() if memory_bytes is None else memory_bytes,
        num_workers or available_workers(),
        is_gated=min_r2 is not None,
        is_searched=bool(factor),
        extra_bytes=figures_bytes(source, len(window)),
    )
    template = template_of(source, window[-1] if coefficients is None else coefficients.rows[-1])
    return ExtrapolationPlan(
        source=source,
        target=target,
        out_dir=out,
        method=spec,
        is_auto=is_auto,
        reason=reason,
        expected=expected,
        window=observed,
        window_rows=window,
        coefficients=coefficients,
        rank_one=RankOneStep((window[0], window[-1]), factor, held_bytes) if factor else None,
        rules=rules,
        keep=patterns,
        min_r2=min_r2,
        dtype=output_dtype,
        exact=exact,
        template=template,
        files=_plan_files(template, output_dtype, max_shard_bytes),
        memory=memory,
        grams=windowed,
        gram_plan=gram_plan,
        warnings=(
            *_warnings(observed, target),
            *(() if expected is None else expected.warnings),
            *(() if exact else _of_jumps(source, observed, is_judged=spec is None or expected is not None)),
        ),
    )


def _without_choice(steps: tuple[int, ...], target: int) -> tuple[MethodSpec | None, str | None]:
    """Return what ``auto`` is where no past could tell methods apart, and why; None where one might."""
    if len(steps) < _MIN_CHOICE:
        there = "there is one line" if len(steps) == 2 else "there is no line"
        return parse_method("ols"), f"through {describe_steps(steps)}, {there}"
    if target <= steps[-1]:
        return parse_method("ols"), f"step {target} is not after the last that was observed, {steps[-1]}"
    return None, None


def _predictor(
    source: TrajectoryStore | RunTrajectories,
    spec: MethodSpec | Rank1Matrix | None,
    rows: tuple[int, ...],
    target: int,
    grams: GramMatrices | None,
) -> tuple[Coefficients | None, float | None]:
    """Return the coefficients, None while Gram matrices are missing, and the factor of a rank-one update."""
    steps = [source.steps[row] for row in rows]
    if isinstance(spec, Rank1Matrix):
        origin = np.zeros(len(rows))
        origin[-1 if spec.rest else 0] = 1.0
        return Coefficients(rows, origin, {}), spec.factor(steps[0], steps[-1], target)
    if spec is None or (spec.needs_gram and grams is None):
        return None, None
    return coefficients_of(spec, rows, steps, target, grams, source.tied), None


def _needed(coefficients: Coefficients, window: tuple[int, ...], factor: float | None) -> list[int]:
    """List the rows with a coefficient, the last, which kept tensors come from, and the ends of an update."""
    ends = {window[0]} if factor else set()
    return sorted({*coefficients.used(), *ends, window[-1]})


def _grams(
    source: TrajectoryStore | RunTrajectories,
    steps: tuple[int, ...],
    rules: Mapping[str, str],
    excluded: Sequence[str],
    memory_bytes: int | None,
    num_workers: int | None,
    *,
    needed: bool,
) -> tuple[GramMatrices | None, GramPlan | None]:
    """Return the Gram matrices that a store keeps; or, where they are needed, the plan of the pass for them."""
    listed = ",".join(map(str, steps))
    is_kept = isinstance(source, TrajectoryStore) and source.record.gram is not None and len(steps) > 1
    names = [t.name for t in _fitted(source, rules)]
    if not names or (not needed and not is_kept):
        return None, None
    plan = plan_gram(
        source,
        steps=listed,
        exclude=excluded,
        memory_bytes=memory_bytes,
        num_workers=num_workers,
        keep=False,
    )
    if plan.num_known == len(plan.rows):
        return _windowed(source, gram(source, steps=listed, exclude=excluded, keep=False), steps, rules), None
    return None, plan if needed else None


def _fitted(source: TrajectoryStore | RunTrajectories, rules: Mapping[str, str]) -> list[TensorSpec]:
    """List the extrapolated tensors that have Gram matrices."""
    return [
        spec
        for name, spec in source.tensors.items()
        if rules[name] == "extrapolate"
        and is_fitted(spec.dtype)
        and spec.num_params
        and name not in source.tied
    ]


def _matching(source: TrajectoryStore | RunTrajectories, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns that name a tensor; others name a tied name, or nothing."""
    return tuple(p for p in patterns if any(matches(name, p) for name in source.tensors))


def _windowed(
    source: TrajectoryStore | RunTrajectories,
    grams: GramMatrices,
    steps: tuple[int, ...],
    rules: Mapping[str, str],
) -> GramMatrices:
    """Restrict matrices to a window and to the tensors that are extrapolated."""
    missing = [step for step in steps if step not in grams.steps]
    if missing:
        raise InputError(
            f"the Gram matrices lack step {missing[0]}: they were computed over {describe_steps(grams.steps)}"
        )
    names = [spec.name for spec in _fitted(source, rules)]
    for name in names:
        if name not in grams.matrices:
            raise InputError(f"the Gram matrices lack tensor `{name}` of {source.location}")
    grams = replace(
        grams,
        matrices={name: grams.matrices[name] for name in names},
        samples={name: grams.samples[name] for name in names if name in grams.samples},
    )
    if steps == grams.steps:
        return grams
    return grams.window([grams.steps.index(step) for step in steps])


def _between(
    source: TrajectoryStore | RunTrajectories, window: tuple[int, ...], first: int | None, last: int | None
) -> tuple[int, ...]:
    steps = [source.steps[row] for row in window]
    for option, step in (("--from", first), ("--to", last)):
        if step is not None and step not in steps:
            there = describe_steps(steps)
            raise SelectionError(f"{option} {step} does not exist; {source.location} has {there}")
    first = steps[0] if first is None else first
    last = steps[-1] if last is None else last
    if first >= last:
        raise InputError(f"--from {first} must lie before --to {last}")
    return tuple(row for row, step in zip(window, steps, strict=True) if first <= step <= last)


def _rules(source: TrajectoryStore | RunTrajectories, patterns: Sequence[str]) -> dict[str, str]:
    rules = {}
    for name, spec in source.tensors.items():
        # A tied name goes with the tensor that it is tied to.
        names = {name, source.tied.get(name, name)}
        names |= {alias for alias, tensor in source.tied.items() if tensor in names}
        if not spec.dtype.is_float or is_buffer(name):
            rules[name] = "copy"
        elif any(matches(n, pattern) for n in names for pattern in patterns):
            rules[name] = "keep"
        else:
            rules[name] = "extrapolate"
    return rules


def _require_fitted(source: TrajectoryStore | RunTrajectories, rules: Mapping[str, str]) -> None:
    """Raise `InputError` if a tensor is to be extrapolated that cannot be."""
    for name, rule in rules.items():
        dtype = source.tensors[name].dtype
        if rule == "extrapolate" and not is_fitted(dtype):
            raise InputError(
                f"tensor `{name}` is {dtype.zarr}, whose values mean little without their scales; "
                "dequantise the checkpoints first, or keep such tensors with --keep"
            )


def _plan_files(
    template: Template, dtype: TensorDType | None, max_shard_bytes: int | None
) -> tuple[WeightFilePlan, ...]:
    files = template.files()
    headers = dict(template.headers)
    if len(files) == 1 and _SINGLE not in files:
        # A lone file of another name is a checkpoint to us, but not to from_pretrained.
        (name,) = files
        files, headers = {_SINGLE: files[name]}, {_SINGLE: headers[name]}
    specs = [
        replace(spec, dtype=dtype) if dtype is not None and is_fitted(spec.dtype) else spec
        for tensors in files.values()
        for spec in tensors.values()
    ]
    file_of = {tensor: name for name, tensors in files.items() for tensor in tensors}
    return plan_files(specs, file_of, source_headers=headers, max_shard_bytes=max_shard_bytes)


def _of_jumps(
    source: TrajectoryStore | RunTrajectories, observed: Sequence[int], *, is_judged: bool
) -> tuple[str, ...]:
    """Warn of a window that crosses a jump; and, where the past judges a method, of that judgement."""
    consequence = "the method takes the extrapolation for training"
    if is_judged:
        consequence += (
            ", and the skill to expect of it, judged by origins and targets on two sides of a jump, misleads"
        )
    return warn_of_jumps(observed, source.jumps, consequence)


def _warnings(observed: Sequence[int], target: int) -> tuple[str, ...]:
    first, last = observed[0], observed[-1]
    reach = max(target - first, last - target) / (last - first) if first < last else 0.0
    if reach <= _FAR:
        return ()
    return (
        f"step {target} reaches {reach:.1f} times the observed span ({first} to {last}); beyond "
        f"{_FAR:.0f} times, straight lines have been seen to fail (arXiv 2601.04537: 600 to 1600 fell back "
        "to .30 on AIME24), so evaluate this checkpoint before you use it",
    )
