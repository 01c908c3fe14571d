"""A training configuration as TRL's and transformers' arguments (read from the source of TRL 1.16)."""

from typing import Any

from ckptlin.errors import InputError
from ckptlin.rl.config import TrainConfig

__all__ = ["grpo_arguments", "micro_batch", "sft_arguments"]

_SCALE = {
    "group": "group",
    "group-mean": "none",
    "group-mean-over-batch-deviation": "batch",
    # Whitened by `ckptlin.rl.trl.grpo`; here only what TRL computes before.
    "batch": "none",
}
_LOSS = {"sequence-then-token": "grpo", "token": "dapo", "constant-length": "dr_grpo"}
_OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
# On a GPU activations are what fills the memory, above all the logits: 16384 tokens of a vocabulary of 152,000
# are 5 GB in bfloat16.  A longer batch gains little there.
_GPU_MICRO_BATCH, _GPU_TOKENS = 8, 16384


def micro_batch(config: TrainConfig, *, num_processes: int, on_gpu: bool) -> int:
    """Return the sequences that go through the model at once on a device.

    Raises
    ------
    InputError
        If a mini-batch cannot be shared out evenly.
    """
    rows = config.mini_batch * config.rows_per_prompt
    if rows % num_processes:
        raise InputError(
            f"a mini-batch of {config.mini_batch} prompts × {config.rows_per_prompt} = {rows} sequences cannot "
            f"be shared out evenly among {num_processes} processes; change mini_batch"
        )
    local = rows // num_processes
    if config.micro_batch is not None:
        if local % config.micro_batch:
            raise InputError(
                f"micro_batch ({config.micro_batch}) must divide the {local} sequences that each of "
                f"{num_processes} processes has of a mini-batch"
            )
        return config.micro_batch
    if not on_gpu:
        return local
    length = config.sampling.max_prompt_tokens + config.sampling.max_completion_tokens
    most = min(_GPU_MICRO_BATCH, max(1, _GPU_TOKENS // length))
    return max(size for size in range(1, most + 1) if local % size == 0)


def grpo_arguments(config: TrainConfig, *, steps: int, num_processes: int, on_gpu: bool) -> dict[str, Any]:
    """Return what ``trl.GRPOConfig`` is given for so many steps."""
    spec, sampling = config.algorithm.spec, config.sampling
    low, high = config.algorithm.clip_range
    size = micro_batch(config, num_processes=num_processes, on_gpu=on_gpu)
    per_process = config.batch * sampling.rollouts // num_processes
    arguments = _shared(config, steps=steps, size=size, num_processes=num_processes, on_gpu=on_gpu) | {
        "steps_per_generation": per_process // size,
        "num_iterations": config.passes,
        "num_generations": sampling.rollouts,
        "max_completion_length": sampling.max_completion_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "beta": config.algorithm.kl_coef,
        "entropy_coef": config.algorithm.entropy_coef,
        "epsilon": low,
        "epsilon_high": high,
        "loss_type": _LOSS[spec.loss_mean],
        "scale_rewards": _SCALE[spec.advantage],
        "importance_sampling_level": spec.ratio,
        # The rows are in their order already, see `ckptlin.rl.data_order`.
        "shuffle_dataset": False,
    }
    if sampling.backend != "generate":
        arguments |= {
            "use_vllm": True,
            "vllm_mode": sampling.backend.removeprefix("vllm-"),
            "vllm_gpu_memory_utilization": sampling.gpu_memory,
            "vllm_server_base_url": sampling.server_url,
            "vllm_max_model_length": sampling.max_prompt_tokens + sampling.max_completion_tokens,
        }
    return arguments


def sft_arguments(config: TrainConfig, *, steps: int, num_processes: int, on_gpu: bool) -> dict[str, Any]:
    """Return what ``trl.SFTConfig`` is given for so many steps."""
    size = micro_batch(config, num_processes=num_processes, on_gpu=on_gpu)
    return _shared(config, steps=steps, size=size, num_processes=num_processes, on_gpu=on_gpu) | {
        "max_length": config.sampling.max_prompt_tokens + config.sampling.max_completion_tokens,
        "completion_only_loss": True,
    }


def _shared(config: TrainConfig, *, steps: int, size: int, num_processes: int, on_gpu: bool) -> dict[str, Any]:
    optimizer = config.optimizer
    rows = config.mini_batch * config.rows_per_prompt // num_processes
    return {
        "seed": config.seed,
        "use_cpu": not on_gpu,
        # Autocast: the weights and the optimizer's state stay in float32, which the checkpoints are saved in.
        "bf16": on_gpu,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "report_to": [],
        "disable_tqdm": True,
        # One record a step; a loss that is no number must show, and not be averaged away.
        "logging_steps": config.updates_per_step,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "max_steps": steps * config.updates_per_step,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows // size,
        "learning_rate": optimizer.lr,
        "lr_scheduler_type": "constant_with_warmup" if optimizer.schedule == "constant" else optimizer.schedule,
        "warmup_steps": optimizer.warmup_steps * config.updates_per_step,
        "optim": _OPTIMIZERS[optimizer.name],
        "optim_args": f"momentum={optimizer.momentum}" if optimizer.name == "sgd" else None,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "remove_unused_columns": False,
    }
