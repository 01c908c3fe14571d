"""What verl cannot do of a configuration, and what of verl's settings is not for the user to change."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckptlin.errors import InputError
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.trl.arguments import micro_batch
from ckptlin.rl.verl.hydra import hydra_value

__all__ = ["check_supported", "further_settings"]

_SCHEDULES = ("constant", "cosine")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
# Settings that decide what is trained, saved and counted, beyond those that are set below anyway.
_OURS = (
    "actor_rollout_ref.actor.fsdp_config.model_dtype",
    "actor_rollout_ref.actor.strategy",
    "actor_rollout_ref.model.lora",
    "actor_rollout_ref.model.lora_rank",
    "algorithm",
    "critic",
    "custom_reward_function",
    "data",
    "model_engine",
    "reward",
    "reward_model",
    "trainer",
)


def check_supported(config: TrainConfig) -> None:
    """Refuse what verl cannot do of a configuration.

    Raises
    ------
    InputError
        The first such setting, and what to do instead.
    """
    optimizer, extra, sampling = config.optimizer, config.extra, config.sampling
    if config.algorithm.spec.is_supervised:
        raise InputError(
            f"engine `verl` trains by rewards, not by `{config.algorithm.name}`: verl's supervised trainer is "
            "another program, which is not driven from here; use engine `trl`"
        )
    if sampling.backend != "vllm-colocate":
        raise InputError(
            f"engine `verl` draws answers by vLLM on the GPUs that train, but sampling.backend is "
            f"`{sampling.backend}`; set sampling.backend=vllm-colocate"
        )
    if config.device == "cpu":
        raise InputError("engine `verl` needs GPUs, but device is `cpu`; set device=auto, or use engine `trl`")
    if optimizer.schedule not in _SCHEDULES:
        raise InputError(
            f"engine `verl` has the schedules {' and '.join(_SCHEDULES)}, but optimizer.schedule is "
            f"`{optimizer.schedule}`; choose one of these, or use engine `trl`"
        )
    jumps = extra is not None and extra.n > 0
    resets = optimizer.reset_every > 0 or (extra is not None and extra.optimizer == "reset")
    if extra is not None and jumps and extra.optimizer == "keep":
        raise InputError(
            "engine `verl` cannot keep the optimizer's state across a jump (extra.optimizer=keep): it restores "
            "weights and optimizer together from shards of one checkpoint, and a jump's weights come in as a "
            "new model; set extra.optimizer=reset, or use engine `trl`"
        )
    in_legs = extra is not None or optimizer.reset_every > 0
    if in_legs and (optimizer.schedule != "constant" or optimizer.warmup_steps):
        raise InputError(
            "engine `verl` spans the learning rate's schedule over a launch, and a run in legs, of RL-Extra or "
            "with resets of the optimizer, has several; set optimizer.schedule=constant and "
            "optimizer.warmup_steps=0, or use engine `trl`"
        )
    if (jumps or resets) and config.algorithm.kl_coef > 0:
        raise InputError(
            "engine `verl` measures algorithm.kl_coef's divergence to the model that it was launched with, "
            "which after a jump or a reset of the optimizer is no longer the starting one; set "
            "algorithm.kl_coef=0, or use engine `trl`"
        )
    if config.log.kl_every and not config.algorithm.kl_coef:
        raise InputError(
            "engine `verl` loads the starting model only for algorithm.kl_coef, so that log.kl_every has "
            "nothing to measure with; set log.kl_every=0"
        )
    micro_batch(config, num_processes=config.verl.num_gpus, on_gpu=True)
    further_settings(config)


def further_settings(config: TrainConfig) -> dict[str, Any]:
    """Return ``verl.overrides`` by dotted names.

    Raises
    ------
    InputError
        If a name is none, a value cannot be written for Hydra, or it decides what is trained, graded or saved.
    """
    found: dict[str, Any] = {}
    for key, value in _flat(config.verl.overrides):
        if not _KEY.fullmatch(key):
            raise InputError(f"verl.overrides has {key!r}; write a setting of verl by its dotted name")
        if any(key == ours or key.startswith(f"{ours}.") for ours in _OURS):
            raise InputError(
                f"verl.overrides sets {key}, which decides what is trained, graded or saved; use the "
                "configuration's own settings for that"
            )
        hydra_value(value)
        found[key] = value
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
