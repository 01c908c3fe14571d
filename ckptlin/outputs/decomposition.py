"""Where a change of a linear layer's output comes from: Δy = WΔx + ΔWx + ΔWΔx (arXiv 2601.04537).

W and x are those of the first checkpoint; WΔx is the part of the *input*, which other layers changed, ΔWx that
of the layer's own *weight*, its bias included, and ΔWΔx that of *both*.  The null is the same model with the
change of every tensor shuffled among its entries: a change of the same size everywhere, that points nowhere.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.errors import InputError, NonFiniteError
from ckptlin.naming import layer_index, module_kind
from ckptlin.outputs.activations import Probed, open_hf
from ckptlin.outputs.lockstep import in_lockstep
from ckptlin.outputs.step_weights import StepWeights, sidecar_directory
from ckptlin.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    import torch

    from ckptlin.outputs.scorers.hf import HfScorer

__all__ = ["PARTS", "Decomposition", "ModuleSums", "decompose"]

PARTS = ("input", "weight", "both")
_PAIRS = ("input_weight", "input_both", "weight_both")
_COLUMNS = {"shares": PARTS, "squared": PARTS, "cross": _PAIRS}
# Outputs of a layer that are held at once, in each of some ten arrays: 16 MB in float32.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ModuleSums:
    """Sums over tokens, for one linear layer or some together.

    Attributes
    ----------
    name : str
    num_modules : int
    gram : numpy.ndarray
        ``(3, 3) float64``: inner products of the three parts with one another, in the order of `PARTS`.
    output : float
        Squared norm of y in the first model.
    residual : float
        Squared norm of what the three parts leave of the outputs' difference: rounding alone.
    """

    name: str
    num_modules: int
    gram: np.ndarray[Any, Any]
    output: float
    residual: float

    @property
    def change(self) -> float:
        """Squared norm of Δy."""
        return float(self.gram.sum())

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """⟨part, Δy⟩ / ‖Δy‖² of each part: their sum is 1; None if nothing changed."""
        return _three(self.gram.sum(axis=1) / self.change) if self.change else None

    @property
    def squared(self) -> tuple[float, float, float] | None:
        """‖part‖² / ‖Δy‖² of each part; with the cross terms their sum is 1."""
        return _three(np.diag(self.gram) / self.change) if self.change else None

    @property
    def cross(self) -> tuple[float, float, float] | None:
        """2⟨a, b⟩ / ‖Δy‖² of input and weight, input and both, weight and both."""
        if not self.change:
            return None
        return _three(2 * self.gram[(0, 0, 1), (1, 2, 2)] / self.change)

    @property
    def relative(self) -> float | None:
        """‖Δy‖ / ‖y‖."""
        return float(np.sqrt(self.change / self.output)) if self.output else None

    @property
    def rounding(self) -> float | None:
        """Norm of what the parts leave, over ‖y‖."""
        return float(np.sqrt(self.residual / self.output)) if self.output else None

    @classmethod
    def merged(cls, name: str, sums: Sequence["ModuleSums"]) -> "ModuleSums":
        """Add some up."""
        return cls(
            name,
            sum(one.num_modules for one in sums),
            np.sum([one.gram for one in sums], axis=0),
            sum(one.output for one in sums),
            sum(one.residual for one in sums),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "name": self.name,
            "num_modules": self.num_modules,
            "shares": _named(PARTS, self.shares),
            "squared": _named(PARTS, self.squared),
            "cross": _named(_PAIRS, self.cross),
            "squared_change": self.change,
            "relative_change": self.relative,
            "rounding": self.rounding,
        }


@dataclass(frozen=True)
class Decomposition:
    """What the change between two checkpoints is made of.

    Attributes
    ----------
    source : str
    steps : (int, int)
    num_states : int
        Tokens that it was summed over.
    dtype : str
        That the models computed in.
    modules, null : tuple of ModuleSums
        Every linear layer, in the order in which they compute, and the same of the shuffled change.
    left_out : tuple of str
        Modules with a matrix that are not among them: routed experts, their routers, and other kinds.
    """

    source: str
    steps: tuple[int, int]
    num_states: int
    dtype: str
    modules: tuple[ModuleSums, ...] = field(repr=False)
    null: tuple[ModuleSums, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()

    def by_layer(self, *, null: bool = False) -> tuple[ModuleSums, ...]:
        """Add the modules of each block up; the head is by itself."""
        return _grouped(self.null if null else self.modules, _layer)

    def by_kind(self, *, null: bool = False) -> tuple[ModuleSums, ...]:
        """Add modules of a kind up over the blocks."""
        return _grouped(self.null if null else self.modules, module_kind)

    def mean_shares(self, *, null: bool = False) -> tuple[float, float, float] | None:
        """Average the shares of all modules that changed, each alike; None if none did."""
        found = [one.shares for one in (self.null if null else self.modules) if one.shares]
        return _three(np.mean(found, axis=0)) if found else None

    @property
    def dominant(self) -> str:
        """The part with the largest mean share, and in how many of the linear layers it is the largest."""
        mean = self.mean_shares()
        if mean is None:
            return "nothing, for no output changed"
        part = int(np.argmax(mean))
        moved = [one.shares for one in self.modules if one.shares]
        count = sum(int(np.argmax(shares)) == part for shares in moved)
        return f"the {PARTS[part]}, in {count} of {len(moved)} linear layers"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return every linear layer as one flat row, for a table."""
        rows = []
        for own, null in zip(self.modules, self.null, strict=True):
            row = own.to_dict()
            del row["num_modules"]
            flat: dict[str, Any] = {}
            for name, value in row.items():
                if name in _COLUMNS:
                    flat |= {
                        f"{name}_{part}": None if value is None else value[part] for part in _COLUMNS[name]
                    }
                else:
                    flat[name] = value
            shares = null.shares or (None, None, None)
            rows.append(
                flat | {f"null_shares_{part}": share for part, share in zip(PARTS, shares, strict=True)}
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""

        def both(groups: Any) -> list[dict[str, Any]]:
            pairs = zip(groups(), groups(null=True), strict=True)
            return [own.to_dict() | {"null_shares": _named(PARTS, null.shares)} for own, null in pairs]

        def modules(*, null: bool = False) -> tuple[ModuleSums, ...]:
            return self.null if null else self.modules

        return {
            "source": self.source,
            "steps": list(self.steps),
            "num_states": self.num_states,
            "dtype": self.dtype,
            "left_out": list(self.left_out),
            "mean_shares": _named(PARTS, self.mean_shares()),
            "null_mean_shares": _named(PARTS, self.mean_shares(null=True)),
            "layers": both(self.by_layer),
            "kinds": both(self.by_kind),
            "modules": both(modules),
        }


def decompose(probed: Probed, *, seed: int = 0, progress: Progress = NO_PROGRESS) -> Decomposition:
    """Decompose the change of every linear layer's output from the first to the last selected checkpoint.

    Terms are computed in float32 (float64 where the models compute in that), sums over tokens in float64.  Both
    models are in memory, and the tensors of both checkpoints.

    Parameters
    ----------
    probed : Probed
        See `ckptlin.outputs.activations.open_probed`.
    seed : int
        Of the shuffled change.
    progress : Progress

    Raises
    ------
    InputError
        If fewer than two steps are selected, or the models are not of one kind.
    NonFiniteError
        If an output is NaN or infinite; names the layer.
    """
    if len(probed.rows) < 2:
        raise InputError(f"a change needs 2 steps, and {len(probed.rows)} was selected: {probed.steps}")
    rows = (probed.rows[0], probed.rows[-1])
    before, after = (probed.reader.read(row, lambda num_bytes: None) for row in rows)
    with ExitStack() as stack:
        directory = stack.enter_context(sidecar_directory(probed.source, rows[0]))
        first = stack.enter_context(open_hf(probed.options))
        second = stack.enter_context(open_hf(probed.options))
        advance = stack.enter_context(progress.phase("decomposition", 2 * _work(probed)))
        first.load(before, directory)
        second.load(after, directory)
        names, left_out = _linear_names(first.model)
        own = _sum_up(probed, first, second, names, advance)
        # What a model was made of may be its memory: `after` is not to be read once this is loaded.
        second.load(_shuffled(before, after, seed), directory)
        null = _sum_up(probed, first, second, names, advance)
    return Decomposition(
        source=probed.source.location,
        steps=(before.step, after.step),
        num_states=probed.states.size,
        dtype=probed.options.dtype,
        modules=own,
        null=null,
        left_out=left_out,
    )


def _work(probed: Probed) -> int:
    """Return the bytes of all ids, by which progress is told."""
    return 4 * sum(probe.num_tokens for probe in probed.states.probes)


def _linear_names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the linear layers of a model's blocks, and of the modules that are left out.

    Those are modules with a matrix that are no ``torch.nn.Linear``, and whatever belongs to routed experts: two
    models send different tokens there.
    """
    import torch

    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    names, left_out = [], []
    for name, module in model.base_model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear)
        if is_linear and "experts" not in name.split("."):
            names.append(prefix + name)
        elif is_linear or (
            not isinstance(module, torch.nn.Embedding)
            and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
        ):
            left_out.append(prefix + name)
    if not names:
        raise InputError(
            f"a {type(model).__name__} has no torch.nn.Linear that sees every token"
            + (f"; {left_out[0]} is a {type(model.get_submodule(left_out[0])).__name__}" if left_out else "")
        )
    return tuple(names), tuple(left_out)


def _sum_up(
    probed: Probed, first: "HfScorer", second: "HfScorer", names: Sequence[str], advance: Callable[[int], None]
) -> tuple[ModuleSums, ...]:
    """Run both models over all tokens; return the sums of every linear layer in the order of computation."""
    import torch

    from ckptlin.outputs.scorers.hf import batches_by_length, check_ids, padded

    states = probed.states
    models = tuple(_Model.of(scorer.model, names) for scorer in (first, second))
    check_ids(states.probes, models[0].whole.get_input_embeddings().num_embeddings)
    real = torch.float64 if probed.options.dtype == "float64" else torch.float32
    sums: dict[str, _Sums] = {}
    for batch in batches_by_length(states.probes, probed.options.batch_tokens):
        probes = [states.probes[index] for index in batch]
        ids, rows, columns = padded(probes)
        offsets = np.cumsum([0, *(len(probe.token_ids) for probe in probes)])
        chosen = np.concatenate([states.places[index] + lo for index, lo in zip(batch, offsets, strict=False)])
        flat = torch.from_numpy((rows * ids.shape[1] + columns)[chosen]).to(first.device)

        def meet(
            name: str, *of_both: "torch.Tensor", num_tokens: int = ids.size, flat: "torch.Tensor" = flat
        ) -> None:
            x, y, x_new, y_new = (_pick(name, tensor, num_tokens, flat) for tensor in of_both)
            modules = (models[0].linear[name], models[1].linear[name])
            sums.setdefault(name, _Sums(name)).add(modules, (x, x_new), (y, y_new), real)

        ends = in_lockstep(
            (models[0].base, models[0].linear),
            (models[1].base, models[1].linear),
            torch.from_numpy(ids).to(first.device),
            meet,
        )
        if models[0].head is not None and models[1].head is not None:
            name, head = models[0].head
            x, x_new = (_pick(name, end.last_hidden_state, ids.size, flat) for end in ends)
            with torch.inference_mode():
                sums.setdefault(name, _Sums(name)).add((head, models[1].head[1]), (x, x_new), None, real)
        advance(4 * sum(probe.num_tokens for probe in probes))
    return tuple(of_module.finished() for of_module in sums.values())


def _pick(name: str, tensor: "torch.Tensor", num_tokens: int, chosen: "torch.Tensor") -> "torch.Tensor":
    """Take the rows of some tokens out of what a layer sees of a batch."""
    of_tokens = tensor.reshape(-1, tensor.shape[-1])
    if len(of_tokens) != num_tokens:
        raise InputError(f"{name} sees {len(of_tokens):,} of {num_tokens:,} tokens; it cannot be decomposed")
    return of_tokens[chosen]


@dataclass(frozen=True)
class _Model:
    """A model taken apart."""

    whole: Any
    base: Any
    linear: dict[str, Any]
    head: tuple[str, Any] | None

    @classmethod
    def of(cls, model: Any, names: Sequence[str]) -> "_Model":
        import torch

        head = model.get_output_embeddings()
        named = None
        if isinstance(head, torch.nn.Linear):
            named = next(name for name, module in model.named_modules() if module is head), head
        return cls(model, model.base_model, {name: model.get_submodule(name) for name in names}, named)


class _Sums:
    """The sums of one linear layer, as they grow."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._gram = np.zeros((3, 3))
        self._output = self._residual = 0.0

    def add(
        self,
        modules: tuple[Any, Any],
        inputs: tuple["torch.Tensor", "torch.Tensor"],
        outputs: tuple["torch.Tensor", "torch.Tensor"] | None,
        real: "torch.dtype",
    ) -> None:
        """Add tokens, rows of the inputs of both models; outputs that are not given are computed."""
        import torch

        weight = modules[0].weight.to(real)
        change = modules[1].weight.to(real) - weight
        bias = None if modules[0].bias is None else modules[1].bias.to(real) - modules[0].bias.to(real)
        at_once = max(1, _AT_ONCE // len(weight))
        for lo in range(0, len(inputs[0]), at_once):
            x, x_new = (part[lo : lo + at_once] for part in inputs)
            if outputs is None:
                y, y_new = (module(part).to(real) for module, part in zip(modules, (x, x_new), strict=True))
            else:
                y, y_new = (part[lo : lo + at_once].to(real) for part in outputs)
            x = x.to(real)
            dx = x_new.to(real) - x
            of_weight = torch.nn.functional.linear(x, change, bias)
            parts = torch.stack([dx @ weight.t(), of_weight, dx @ change.t()])
            rest = (y_new - y - parts.sum(dim=0)).double()
            flat = parts.reshape(3, -1).double()
            self._gram += (flat @ flat.t()).cpu().numpy()
            self._output += float((y.double() ** 2).sum())
            self._residual += float((rest**2).sum())
        if not np.isfinite([*self._gram.flat, self._output, self._residual]).all():
            raise NonFiniteError(
                f"the output of {self._name} is NaN or infinite in one of the checkpoints; compute with "
                "--dtype float32"
            )

    def finished(self) -> ModuleSums:
        """Return what was summed up."""
        return ModuleSums(self._name, 1, self._gram, self._output, self._residual)


def _shuffled(before: StepWeights, after: StepWeights, seed: int) -> StepWeights:
    """Return the first weights with each tensor's change shuffled, rounded to the tensor's dtype."""
    rng = np.random.default_rng([abs(seed), 3])
    tensors = {}
    for name, old in before.tensors.items():
        new = after.tensors[name]
        if np.issubdtype(new.dtype, np.integer) or new.dtype.kind == "b":
            tensors[name] = new
            continue
        wide = np.float64 if new.dtype == np.float64 else np.float32
        change = rng.permutation((new.astype(wide) - old.astype(wide)).reshape(-1))
        tensors[name] = (old.astype(wide) + change.reshape(old.shape)).astype(new.dtype)
    return StepWeights(after.step, f"{after.source}, its change shuffled", "", tensors)


def _grouped(modules: Sequence[ModuleSums], key: Callable[[str], str]) -> tuple[ModuleSums, ...]:
    groups: dict[str, list[ModuleSums]] = {}
    for module in modules:
        groups.setdefault(key(module.name), []).append(module)
    return tuple(ModuleSums.merged(name, members) for name, members in groups.items())


def _layer(name: str) -> str:
    layer = layer_index(name)
    return name if layer is None else f"block {layer}"


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = (float(value) for value in values)
    return a, b, c


def _named(names: Sequence[str], values: Sequence[float] | None) -> dict[str, float] | None:
    return None if values is None else dict(zip(names, values, strict=True))
