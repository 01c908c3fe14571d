"""What a training run is made of: one frozen tree of dataclasses, checked when it is made.

The defaults are those of the paper (arXiv 2601.04537, section on the set-up): AdamW at 1e-6, 128 prompts a step
in two mini-batches, 16 rollouts of each, temperature 1, clip range 0.2 / 0.28, neither KL term nor entropy
bonus.  Reading it from YAML and from options is `ckptlin.rl.config_file`'s business.

A *step* is one batch of rollouts, in every engine; a step may hold several updates of the optimizer.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ckptlin.errors import InputError
from ckptlin.methods import parse_method
from ckptlin.rl.algorithms import Algorithm, get_algorithm

__all__ = [
    "AlgorithmConfig",
    "DataConfig",
    "GuardConfig",
    "LogConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RlExtraConfig",
    "SamplingConfig",
    "StopConfig",
    "TrainConfig",
    "VerlConfig",
]


# Steps between estimates of the divergence: two more forward passes of a batch, and a second model in memory.
KL_EVERY = 10


@dataclass(frozen=True)
class DataConfig:
    """Where the problems come from.

    Attributes
    ----------
    source : str
        A ``.jsonl`` or ``.parquet`` file, a hub name ``org/dataset:split``, or a built-in name such as
        ``sums:train``.
    held_out : str or None
        Problems that the guard measures on; None for no guard.
    template : str
        ``plain``, ``boxed``, or a text with ``{problem}``.
    chat : bool or None
        Whether the prompt goes through the tokenizer's chat template; None for what the template prefers.
    limit : int or None
        Take the first so many problems.
    """

    source: str = ""
    held_out: str | None = None
    template: str = "plain"
    chat: bool | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.source), "data.source", self.source, "a file, a hub name or a built-in name")
        _require(self.held_out != "", "data.held_out", self.held_out, "a file, a hub name or a built-in name")
        _require(self.limit is None or self.limit > 0, "data.limit", self.limit, "positive")


@dataclass(frozen=True)
class RewardConfig:
    """What grades an answer.

    Attributes
    ----------
    grader : str
        ``exact``, ``math``, ``code``, or a function as ``package.module:function``.
    parameters : dict
        Keyword arguments of the grader; what JSON can hold, since the run's record keeps them.
    """

    grader: str = "math"
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(bool(self.grader), "reward.grader", self.grader, "the name of a grader")
        _require(_is_json(self.parameters), "reward.parameters", self.parameters, "made of JSON's types")


@dataclass(frozen=True)
class AlgorithmConfig:
    """Which algorithm, and what of it differs from its defaults.

    Attributes
    ----------
    name : str
        See `ckptlin.rl.algorithms.ALGORITHMS`.
    clip_low, clip_high : float or None
        Clip range of the ratios; None for the algorithm's own.
    kl_coef : float
        Weight of the KL divergence to the starting model in the loss.
    entropy_coef : float
        Weight of an entropy bonus.
    """

    name: str = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        get_algorithm(self.name)
        for name in ("clip_low", "clip_high"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"algorithm.{name}", value, "positive")
        for name in ("kl_coef", "entropy_coef"):
            _require(getattr(self, name) >= 0, f"algorithm.{name}", getattr(self, name), "0 or more")

    @property
    def spec(self) -> Algorithm:
        """The algorithm itself."""
        return get_algorithm(self.name)

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far a ratio may fall below 1, and how far it may rise above."""
        low, high = self.clip_low, self.clip_high
        return (
            self.spec.clip_low if low is None else low,
            self.spec.clip_high if high is None else high,
        )


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn.

    Attributes
    ----------
    rollouts : int
        Answers to each prompt, the group.
    temperature, top_p : float
    max_prompt_tokens, max_completion_tokens : int
    backend : str
        ``generate`` (transformers), ``vllm-colocate`` or ``vllm-server``.
    server_url : str or None
        Of ``vllm-server``.
    gpu_memory : float
        Share of the GPU's memory that a colocated vLLM takes.
    """

    rollouts: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 2048
    max_completion_tokens: int = 16384
    backend: str = "generate"
    server_url: str | None = None
    gpu_memory: float = 0.3

    BACKENDS: ClassVar[tuple[str, ...]] = ("generate", "vllm-colocate", "vllm-server")

    def __post_init__(self) -> None:
        for name in ("rollouts", "max_prompt_tokens", "max_completion_tokens"):
            _require(getattr(self, name) >= 1, f"sampling.{name}", getattr(self, name), "at least 1")
        _require(self.temperature > 0, "sampling.temperature", self.temperature, "positive")
        _require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "above 0 and at most 1")
        _require(0 < self.gpu_memory <= 1, "sampling.gpu_memory", self.gpu_memory, "above 0 and at most 1")
        _require_one_of("sampling.backend", self.backend, self.BACKENDS)
        if (self.server_url is None) == (self.backend == "vllm-server"):
            raise InputError(
                "sampling.server_url and sampling.backend `vllm-server` go together; set both or neither"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are updated.

    Attributes
    ----------
    name : str
        ``adamw`` or ``sgd``.
    lr : float
    beta1, beta2, epsilon : float
        Of AdamW.
    momentum : float
        Of SGD.
    weight_decay, max_grad_norm : float
    schedule : str
        ``constant``, ``linear`` or ``cosine``; they count real updates.
    warmup_steps : int
        Steps, not updates.
    reset_every : int
        Forget the optimizer's state every so many steps; 0 for never.
    """

    name: str = "adamw"
    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    reset_every: int = 0

    NAMES: ClassVar[tuple[str, ...]] = ("adamw", "sgd")
    SCHEDULES: ClassVar[tuple[str, ...]] = ("constant", "linear", "cosine")

    def __post_init__(self) -> None:
        _require_one_of("optimizer.name", self.name, self.NAMES)
        _require_one_of("optimizer.schedule", self.schedule, self.SCHEDULES)
        _require(self.lr > 0, "optimizer.lr", self.lr, "positive")
        for name in ("beta1", "beta2", "momentum"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "within [0, 1)")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "reset_every"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or more")
        _require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "positive")


@dataclass(frozen=True)
class GuardConfig:
    """When a jump is taken back.

    Attributes
    ----------
    enabled : bool
    num_problems, num_samples : int
        Held-out problems, and answers to each, before and after a jump; the same prompts and seeds.
    z : float
        A jump is undone if the mean reward fell by more than so many standard errors of the paired difference.
    """

    enabled: bool = False
    num_problems: int = 64
    num_samples: int = 8
    z: float = 1.64

    def __post_init__(self) -> None:
        _require(self.num_problems >= 2, "extra.guard.num_problems", self.num_problems, "at least 2")
        _require(self.num_samples >= 1, "extra.guard.num_samples", self.num_samples, "at least 1")
        _require(self.z >= 0, "extra.guard.z", self.z, "0 or more")


@dataclass(frozen=True)
class RlExtraConfig:
    """RL-Extra: legs of real steps, and a jump after each.

    Attributes
    ----------
    m, n : int
        Real steps of a leg, and virtual steps of the jump that follows it; n = 0 jumps nowhere.
    method : str
        What predicts where the jump lands, as of ``ckptlin methods``, from the leg's own checkpoints; ``auto``
        goes only as far as the leg's own backtest supports.
    optimizer : str
        ``reset`` (the paper) or ``keep`` its state across a jump.
    guard : GuardConfig
    """

    m: int = 100
    n: int = 100
    method: str = "two-point"
    optimizer: str = "reset"
    guard: GuardConfig = field(default_factory=GuardConfig)

    OPTIMIZER: ClassVar[tuple[str, ...]] = ("reset", "keep")

    def __post_init__(self) -> None:
        _require(self.m >= 1, "extra.m", self.m, "at least 1")
        _require(self.n >= 0, "extra.n", self.n, "0 or more")
        _require_one_of("extra.optimizer", self.optimizer, self.OPTIMIZER)
        if self.method != "auto":
            parse_method(self.method)


@dataclass(frozen=True)
class LogConfig:
    """What is written while a run trains, beside its checkpoints and ``log.csv``.

    Attributes
    ----------
    tensorboard, wandb : bool
    wandb_project : str
    kl_every : int or None
        Steps between estimates of the KL divergence to the starting model, which is loaded for them; 0 for
        never, None for what the engine can do: every 10 steps with ``trl``.
    store : str or None
        Trajectory store that each checkpoint is appended to.
    """

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "ckptlin"
    kl_every: int | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        _require(self.kl_every is None or self.kl_every >= 0, "log.kl_every", self.kl_every, "0 or more")


@dataclass(frozen=True)
class StopConfig:
    """When a run that goes wrong stops by itself, keeping its last good checkpoint.

    Attributes
    ----------
    window : int
        Steps that the mean reward is taken over.
    collapse : float
        Stop when that mean falls below this share of the best so far; 0 for never.  NaN always stops.
    """

    window: int = 50
    collapse: float = 0.2

    def __post_init__(self) -> None:
        _require(self.window >= 1, "stop.window", self.window, "at least 1")
        _require(0 <= self.collapse < 1, "stop.collapse", self.collapse, "within [0, 1)")


@dataclass(frozen=True)
class VerlConfig:
    """What the engine ``verl`` alone asks for.

    Attributes
    ----------
    nodes, gpus_per_node : int
        Machines of the Ray cluster that take part, and the GPUs of each.
    tensor_parallel : int
        GPUs that share a copy of the model while answers are drawn.
    overrides : dict
        Further settings of verl by their dotted names, or nested: offloading, sequence parallelism, kernels;
        what JSON can hold, since the run's record keeps them.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    tensor_parallel: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "tensor_parallel"):
            _require(getattr(self, name) >= 1, f"verl.{name}", getattr(self, name), "at least 1")
        _require(_is_json(self.overrides), "verl.overrides", self.overrides, "made of JSON's types")
        if self.num_gpus % self.tensor_parallel:
            raise InputError(
                f"verl.tensor_parallel ({self.tensor_parallel}) must divide the {self.num_gpus} GPUs of "
                "verl.nodes × verl.gpus_per_node"
            )

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes
    ----------
    model : str
        Directory or hub name of the model that training starts from.
    steps : int
        Real steps, each one batch of rollouts.
    batch, mini_batch : int
        Prompts of a step, and of an update.
    passes : int
        How often each batch is gone through.
    micro_batch : int or None
        Rollouts that go through the model at once on a device; None for all of a mini-batch on a CPU, and on a
        GPU for up to 8, of at most 16384 tokens together.
    save_every : int
        Steps between checkpoints.
    seed : int
    engine : str
        ``trl`` or ``verl``.
    device : str
        ``auto``, or ``cpu`` where there is a GPU that should not be used.
    extra : RlExtraConfig or None
        None for plain training.
    verl : VerlConfig
        For the engine of that name.

    Examples
    --------
    >>> config = TrainConfig(model="./base", data=DataConfig("sums:train"))
    >>> config.batch * config.sampling.rollouts, config.updates_per_step, config.optimizer.lr
    (2048, 2, 1e-06)
    """

    model: str = ""
    steps: int = 1000
    batch: int = 128
    mini_batch: int = 64
    passes: int = 1
    micro_batch: int | None = None
    save_every: int = 50
    seed: int = 0
    engine: str = "trl"
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    extra: RlExtraConfig | None = None
    log: LogConfig = field(default_factory=LogConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    verl: VerlConfig = field(default_factory=VerlConfig)

    ENGINES: ClassVar[tuple[str, ...]] = ("trl", "verl")
    DEVICES: ClassVar[tuple[str, ...]] = ("auto", "cpu")

    def __post_init__(self) -> None:
        _require(bool(self.model), "model", self.model, "a directory or a hub name")
        for name in ("steps", "batch", "mini_batch", "passes", "save_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require_one_of("engine", self.engine, self.ENGINES)
        _require_one_of("device", self.device, self.DEVICES)
        _require_finite(self.to_dict())
        if self.batch % self.mini_batch:
            raise InputError(
                f"batch ({self.batch}), the prompts of a step, must be a multiple of mini_batch "
                f"({self.mini_batch}), those of an update"
            )
        supervised = self.algorithm.spec.is_supervised
        if not supervised and self.sampling.rollouts < 2:
            raise InputError(
                f"sampling.rollouts is {self.sampling.rollouts}, but `{self.algorithm.name}` compares the "
                "answers to a prompt with one another and needs at least 2"
            )
        rows = self.mini_batch * self.rows_per_prompt
        if self.micro_batch is not None and (self.micro_batch < 1 or rows % self.micro_batch):
            what = "problems" if supervised else f"prompts × {self.sampling.rollouts} rollouts"
            raise InputError(
                f"micro_batch ({self.micro_batch}) must divide a mini-batch, {self.mini_batch} {what} = {rows}"
            )
        if self.extra is not None:
            self._check_extra(self.extra)

    def _check_extra(self, extra: RlExtraConfig) -> None:
        if self.optimizer.reset_every:
            raise InputError("optimizer.reset_every is for plain training; RL-Extra has extra.optimizer")
        if extra.guard.enabled and self.data.held_out is None:
            raise InputError("the guard measures on held-out problems; name them by data.held_out")
        num_checkpoints = 1 + math.ceil(extra.m / self.save_every)
        needed = 4 if extra.method == "auto" else parse_method(extra.method).min_steps
        if extra.n and num_checkpoints < needed:
            raise InputError(
                f"`{extra.method}` needs {needed} checkpoints, but a leg of {extra.m} steps with one every "
                f"{self.save_every} has {num_checkpoints}; lower save_every"
            )

    @property
    def rows_per_prompt(self) -> int:
        """Sequences that a prompt contributes to a batch."""
        return 1 if self.algorithm.spec.is_supervised else self.sampling.rollouts

    @property
    def updates_per_step(self) -> int:
        """Updates of the optimizer in a step."""
        return self.batch // self.mini_batch * self.passes

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        return asdict(self)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Return the dotted names of the settings that differ."""
        return _differences(self.to_dict(), other.to_dict())


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in {**ours, **theirs}:
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    # A NaN fails every comparison, and so ends here too.
    if not holds:
        raise InputError(f"{name} is {value!r}, but must be {expected}")


def _require_finite(data: dict[str, Any], prefix: str = "") -> None:
    for key, value in data.items():
        if isinstance(value, dict):
            _require_finite(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            _require(math.isfinite(value), f"{prefix}{key}", value, "a finite number")


def _is_json(value: object) -> bool:
    # What comes back otherwise than it went would look like another setting when the run goes on.
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"one of {', '.join(choices)}")
