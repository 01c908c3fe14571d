"""Hidden states of every layer under checkpoint after checkpoint, sketched, into a store that grows."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import InputError, MissingExtraError, NonFiniteError
from ckptlin.outputs.activation_store import ActivationStore, ActivationStoreWriter, open_activation_writer
from ckptlin.outputs.layers import layer_names, layers_observed
from ckptlin.outputs.model_files import check_context, load_config, load_tokenizer
from ckptlin.outputs.responses import read_responses
from ckptlin.outputs.scorers import ScorerOptions
from ckptlin.outputs.states import States, pick_states, sketch_matrix
from ckptlin.outputs.step_loop import coming_steps, divide_rows, open_steps
from ckptlin.outputs.step_weights import StepWeights, WeightReader, sidecar_directory
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.quiet import quiet_transformers
from ckptlin.store.store import TrajectoryStore

if TYPE_CHECKING:
    from ckptlin.outputs.scorers.hf import HfScorer

__all__ = [
    "ActivationPlan",
    "ActivationResult",
    "Probed",
    "compute_activations",
    "open_hf",
    "open_probed",
    "plan_activations",
]

_VERSIONS = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Probed:
    """Checkpoints, and the tokens that they are asked about.

    Attributes
    ----------
    source : TrajectoryStore or RunTrajectories
    reader : WeightReader
    rows : tuple of int
        Selected rows of its steps.
    states : States
    options : ScorerOptions
    num_blocks, hidden : int
        Of the model.
    """

    source: TrajectoryStore | RunTrajectories = field(repr=False)
    reader: WeightReader = field(repr=False)
    rows: tuple[int, ...]
    states: States
    options: ScorerOptions
    num_blocks: int
    hidden: int

    @property
    def steps(self) -> tuple[int, ...]:
        """Those selected."""
        return tuple(self.source.steps[row] for row in self.rows)


@dataclass(frozen=True)
class ActivationPlan:
    """What will be computed.

    Attributes
    ----------
    probed : Probed
    rows : tuple of int
        Selected rows that are not in the store yet.
    present : tuple of int
        Selected steps that are in the store.
    out : Path
        The store.
    dim : int
        Coordinates that are kept of a state.
    seed : int
    """

    probed: Probed
    rows: tuple[int, ...]
    present: tuple[int, ...]
    out: Path
    dim: int
    seed: int

    @property
    def steps(self) -> tuple[int, ...]:
        """To be computed."""
        return tuple(self.probed.source.steps[row] for row in self.rows)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return layer_names(self.probed.num_blocks)

    @property
    def sketch(self) -> dict[str, int]:
        """What the store's record says of the sketch."""
        return {"seed": self.seed, "dim": self.dim, "hidden": self.probed.hidden}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        states = self.probed.states
        return {
            "source": self.probed.source.location,
            "out": str(self.out),
            "steps": list(self.steps),
            "steps_present": list(self.present),
            "num_states": states.size,
            "num_distinct": states.num_distinct,
            "num_tokens": states.num_tokens,
            "layers": list(self.layers),
            "dim": self.dim,
            "hidden": self.probed.hidden,
            "dtype": self.probed.options.dtype,
            "bytes_in": self.probed.reader.num_bytes * len(self.rows),
            "bytes_out": 4 * self.dim * states.size * len(self.layers) * len(self.rows),
        }


@dataclass(frozen=True)
class ActivationResult:
    """What was computed.

    Attributes
    ----------
    store : ActivationStore
    added, present : tuple of int
        Steps computed now, and steps that were there.
    elapsed_s : float
    """

    store: ActivationStore
    added: tuple[int, ...]
    present: tuple[int, ...]
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "store": str(self.store.path),
            "steps": list(self.store.steps),
            "steps_added": list(self.added),
            "steps_present": list(self.present),
            "num_states": self.store.num_states,
            "layers": list(self.store.layers),
            "dim": self.store.dim,
            "elapsed_s": self.elapsed_s,
        }


def open_probed(
    items: Sequence[str],
    responses: Path | str,
    *,
    steps: str | None = None,
    base: str | None = None,
    skip_incomplete: bool = False,
    num_tokens: int = 4096,
    seed: int = 0,
    dtype: str = "auto",
    batch_tokens: int = 8192,
    device: str | None = None,
    limit: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> Probed:
    """Read responses and headers, and choose steps and tokens, without reading a weight.

    Parameters
    ----------
    items : sequence of str
        A run, a trajectory store, or ``STEP=PATH`` for each checkpoint.
    responses : Path or str
        See `ckptlin.outputs.responses`.
    steps : str, optional
        Window, see `ckptlin.selection.select_rows`.
    base : str, optional
        Model that a run began from, as step 0.
    skip_incomplete : bool
        Leave a run's incomplete checkpoints out, and say so.
    num_tokens : int
        So many tokens of the responses at most, chosen at random.
    seed : int
    dtype : str
        That models compute in; ``auto`` for the checkpoints' own.
    batch_tokens, device
        See `ScorerOptions`.
    limit : int, optional
        Only the first so many responses.
    progress : Progress
        Takes what is left out.

    Raises
    ------
    InputError, SelectionError
        If responses are malformed or too long for the model, or an option makes no sense.
    CheckpointError, StoreError
        If what is to be read is damaged.
    """
    reader, rows = open_steps(items, steps=steps, base=base, skip_incomplete=skip_incomplete, progress=progress)
    source = reader.source
    with sidecar_directory(source, rows[0]) as directory:
        num_blocks, hidden = _shape(directory, source.location)
        read = read_responses(Path(responses), tokenizer=load_tokenizer(directory), limit=limit)
        check_context(directory, read.longest, source.location)
    return Probed(
        source=source,
        reader=reader,
        rows=rows,
        states=pick_states(read, num_tokens=num_tokens, seed=seed),
        options=ScorerOptions(
            max_tokens=read.longest,
            dtype=reader.main_dtype() if dtype == "auto" else dtype,
            batch_tokens=batch_tokens,
            device=device,
        ),
        num_blocks=num_blocks,
        hidden=hidden,
    )


def plan_activations(
    items: Sequence[str],
    responses: Path | str,
    out: Path | str,
    *,
    dim: int = 32,
    seed: int = 0,
    **options: Any,
) -> ActivationPlan:
    """Find out what is to be done, without reading a weight.

    Parameters
    ----------
    items, responses
        See `open_probed`, which takes the other options.
    out : Path or str
        The store.
    dim : int
        Coordinates to keep of each state; all of a model that has no more.
    seed : int
        Of the choice of tokens and of the sketch.

    Raises
    ------
    InputError, SelectionError
        See `open_probed`; also if the store holds other states.
    StepConflictError
        If a step in the store is of another checkpoint.
    """
    probed = open_probed(items, responses, seed=seed, **options)
    kept = sketch_matrix(probed.hidden, dim, layer=0).shape[1]
    plan = ActivationPlan(probed, probed.rows, (), Path(out), kept, seed)
    store = ActivationStore.existing(out)
    if store is not None:
        store.check(probed.states, layers=plan.layers, sketch=plan.sketch)
    missing, present = divide_rows(store, probed.reader, probed.rows)
    return replace(plan, rows=missing, present=present)


def compute_activations(plan: ActivationPlan, *, progress: Progress = NO_PROGRESS) -> ActivationResult:
    """Compute what a plan lists, and commit each step to the store when it is done.

    The next checkpoint is read while this one computes: two are in memory, besides the model itself.

    Raises
    ------
    InputError
        If transformers cannot run the model, or the store holds other states.
    NonFiniteError
        If a state is NaN or infinite; names the step and the layer.
    StoreLockedError, StepConflictError, DiskFullError
    """
    started = time.perf_counter()
    with open_activation_writer(plan.out, plan.probed.states, layers=plan.layers, sketch=plan.sketch) as writer:
        if plan.rows:
            _compute(plan, writer, progress)
        store = writer.store
    return ActivationResult(store, plan.steps, plan.present, time.perf_counter() - started)


def open_hf(options: ScorerOptions) -> "HfScorer":
    """Open what loads checkpoints into a model of transformers; use it in a ``with`` statement.

    Raises
    ------
    MissingExtraError
        If torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401 (whether it is there)
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f'hidden states need {error.name}; pip install "ckptlin[models]"') from error
    from ckptlin.outputs.scorers.hf import HfScorer

    return HfScorer(options)


def _compute(plan: ActivationPlan, writer: ActivationStoreWriter, progress: Progress) -> None:
    probed = plan.probed
    matrices = [
        sketch_matrix(probed.hidden, plan.dim, layer=layer, seed=plan.seed) for layer in range(len(plan.layers))
    ]
    with ExitStack() as stack:
        scorer = stack.enter_context(open_hf(probed.options))
        advance = stack.enter_context(progress.phase("activations", plan.to_dict()["bytes_out"]))
        for coming in stack.enter_context(coming_steps(probed.reader, plan.rows)):
            scorer.load(coming.weights, coming.directory)
            states = _observe(scorer, plan, matrices, coming.weights, advance)
            described = scorer.describe()
            engine = {name: described[name] for name in ("engine", "device", "dtype")}
            writer.append(coming.entry(engine, _VERSIONS), states)


def _observe(
    scorer: "HfScorer",
    plan: ActivationPlan,
    matrices: Sequence[np.ndarray[Any, Any]],
    weights: StepWeights,
    advance: Any,
) -> np.ndarray[Any, Any]:
    """Return all sketched states of a checkpoint, ``(num_layers, num_states, dim) float32``."""
    import torch

    from ckptlin.outputs.scorers.hf import batches_by_length, check_ids, padded

    states, options = plan.probed.states, plan.probed.options
    probes, starts = states.probes, states.starts
    check_ids(probes, scorer.model.get_input_embeddings().num_embeddings)
    # Products in float32, or float64 where the model computes in that.
    real = torch.float64 if options.dtype == "float64" else torch.float32
    sketches = [torch.from_numpy(matrix).to(scorer.device, real) for matrix in matrices]
    out = np.empty((len(matrices), states.size, plan.dim), np.float32)
    here: dict[str, Any] = {}

    def take(layer: int, hidden: "torch.Tensor") -> None:
        if hidden.shape[-1] != plan.probed.hidden:
            raise InputError(
                f"{plan.layers[layer]} of {weights.source} has states of {hidden.shape[-1]} coordinates, and "
                f"the model's configuration tells {plan.probed.hidden}"
            )
        sketched = (hidden[here["rows"], here["columns"]].to(real) @ sketches[layer]).float().cpu().numpy()
        if not np.isfinite(sketched).all():
            raise NonFiniteError(
                f"{weights.source} has a hidden state that is NaN or infinite in layer {plan.layers[layer]}; "
                "leave the step out with --steps, or compute with --dtype float32"
            )
        out[layer, here["target"]] = sketched
        advance(sketched.nbytes)

    with layers_observed(scorer.model, take) as base, torch.inference_mode(), quiet_transformers():
        for batch in batches_by_length(probes, options.batch_tokens):
            ids, rows, columns = padded([probes[index] for index in batch])
            offsets = np.cumsum([0, *(len(probes[index].token_ids) for index in batch)])
            chosen = np.concatenate(
                [offset + states.places[index] for index, offset in zip(batch, offsets, strict=False)]
            )
            here["target"] = np.concatenate(
                [starts[index] + np.arange(len(states.places[index])) for index in batch]
            )
            here["rows"], here["columns"] = (
                torch.from_numpy(array[chosen]).to(scorer.device) for array in (rows, columns)
            )
            base(input_ids=torch.from_numpy(ids).to(scorer.device), use_cache=False)
    return out


def _shape(directory: Path, location: str) -> tuple[int, int]:
    """Return a model's number of blocks and the size of its hidden states."""
    text = load_config(directory, location)
    sizes = (getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None))
    if None in sizes:
        raise InputError(
            f"the configuration of a {text.model_type} tells no num_hidden_layers and hidden_size, without "
            "which its layers cannot be found"
        )
    return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]
