"""A training configuration as settings of ``verl.trainer.main_ppo``, in the words of Hydra's command line.

Read from the source of verl 0.9.1.  Hydra checks that a key is there and nothing of what it is set to:
``algorithm.adv_estimator=banana`` composes, and fails on the cluster an hour later.  So everything is checked
here, and what verl cannot do of a configuration is refused.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptlin.errors import InputError
from ckptlin.rl.config import TrainConfig
from ckptlin.rl.trl.arguments import micro_batch
from ckptlin.rl.verl.hydra import hydra_value
from ckptlin.rl.verl.limits import check_supported, further_settings

__all__ = ["sampling_overrides", "verl_overrides"]

# What a reward is compared with: the estimator, and whether GRPO's is divided by the deviation.
_ESTIMATORS = {
    "group": ("grpo", True),
    "group-mean": ("grpo", False),
    "group-mean-over-batch-deviation": ("reinforce_plus_plus_baseline", True),
    "batch": ("reinforce_plus_plus", True),
}
_LOSS_MEANS = {
    "sequence-then-token": "seq-mean-token-mean",
    "token": "token-mean",
    "constant-length": "seq-mean-token-sum-norm",
}
_LOSS_MODES = {"token": "vanilla", "sequence": "gspo"}
_OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}
# verl bounds the loss of bad answers at this ratio as well (dual clip, at 3 by default), which no algorithm
# here does.  It holds ratios below exp(20) < 1e9 anyway.
_NO_DUAL_CLIP = 1e9
# Weights, optimizer, schedule and random numbers to go on from, and the model for everybody else.
_SAVED = ("model", "optimizer", "extra", "hf_model")
_LOADED = ("model", "optimizer", "extra")


def verl_overrides(
    config: TrainConfig,
    *,
    train_files: Sequence[Path],
    out_dir: Path,
    total_steps: int,
    model_path: Path | str,
    resume_from: Path | None = None,
    save_every: int | None = None,
    epochs: int | None = None,
    chat_template: str | None = None,
    rollout_seed: int | None = None,
) -> tuple[str, ...]:
    """Return a configuration as Hydra overrides of verl's ``ppo_trainer``.

    Every key is one that verl has; none is added by ``+``.

    Parameters
    ----------
    config : TrainConfig
    train_files : sequence of Path
        Prompts in verl's parquet, in the order in which they are to be trained on.
    out_dir : Path
        Absolute directory for verl's own checkpoints; metrics, and what the reward manager reads and writes,
        lie beside it.
    total_steps : int
        Step at which verl stops, as it counts them.
    model_path : Path or str
        Model that is trained, and that a KL divergence is measured to.
    resume_from : Path, optional
        A ``global_step_N`` whose weights, optimizer and schedule are restored; the first step is then N + 1.
    save_every : int, optional
        Steps between checkpoints; by default the configuration's.
    epochs : int, optional
        How often verl may go through the files; by default so often that ``total_steps`` is what stops it.
    chat_template : str, optional
        Template to take for the tokenizer's own.
    rollout_seed : int, optional
        Of vLLM; by default the configuration's seed.

    Raises
    ------
    InputError
        If verl cannot do it, or a value cannot be written for Hydra.

    Examples
    --------
    >>> from ckptlin.rl.config import DataConfig, SamplingConfig
    >>> sampling = SamplingConfig(backend="vllm-colocate")
    >>> config = TrainConfig("./base", engine="verl", data=DataConfig("sums"), sampling=sampling)
    >>> file, out_dir = Path("/run/verl/a.parquet"), Path("/run/verl/checkpoints")
    >>> found = verl_overrides(config, train_files=[file], out_dir=out_dir, total_steps=9, model_path="./base")
    >>> [item for item in found if "lr=" in item or "adv_estimator" in item]
    ["algorithm.adv_estimator='grpo'", 'actor_rollout_ref.actor.optim.lr=1e-06']
    """
    check_supported(config)
    settings = _model_and_data(
        config,
        train_files=train_files,
        out_dir=out_dir,
        model_path=model_path,
        chat_template=chat_template,
        seed=config.seed if rollout_seed is None else rollout_seed,
    )
    settings |= _algorithm(config) | _optimizer(config)
    settings |= {
        "trainer.total_training_steps": total_steps,
        "trainer.total_epochs": total_steps + 1 if epochs is None else epochs,
        "trainer.save_freq": config.save_every if save_every is None else save_every,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.val_only": False,
        "trainer.resume_mode": "disable" if resume_from is None else "resume_path",
        "trainer.resume_from_path": None if resume_from is None else str(resume_from),
    }
    return _written(config, settings)


def sampling_overrides(
    config: TrainConfig,
    *,
    files: Sequence[Path],
    out_dir: Path,
    answers_dir: Path,
    model_path: Path,
    num_samples: int,
    seed: int,
    chat_template: str | None = None,
) -> tuple[str, ...]:
    """Return the overrides with which verl answers the prompts of files, trains nothing, and ends.

    Parameters
    ----------
    config : TrainConfig
    files : sequence of Path
        Prompts in verl's parquet.
    out_dir : Path
        As of `verl_overrides`.
    answers_dir : Path
        Where verl writes ``0.jsonl``, an answer a line, with what the reward manager said of it.
    model_path : Path
    num_samples : int
        Answers to each prompt.
    seed : int
        Of vLLM.
    chat_template : str, optional

    Raises
    ------
    InputError
        As of `verl_overrides`.
    """
    check_supported(config)
    settings = _model_and_data(
        config,
        train_files=files,
        out_dir=out_dir,
        model_path=model_path,
        chat_template=chat_template,
        seed=seed,
    )
    settings |= _algorithm(config) | _optimizer(config)
    settings |= {
        "actor_rollout_ref.rollout.val_kwargs.n": num_samples,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "actor_rollout_ref.rollout.val_kwargs.temperature": config.sampling.temperature,
        "actor_rollout_ref.rollout.val_kwargs.top_p": config.sampling.top_p,
        "trainer.total_training_steps": 1,
        "trainer.total_epochs": 1,
        "trainer.save_freq": -1,
        "trainer.val_before_train": True,
        "trainer.val_only": True,
        "trainer.validation_data_dir": str(answers_dir),
        "trainer.resume_mode": "disable",
    }
    return _written(config, settings)


def _model_and_data(
    config: TrainConfig,
    *,
    train_files: Sequence[Path],
    out_dir: Path,
    model_path: Path | str,
    chat_template: str | None,
    seed: int,
) -> dict[str, Any]:
    sampling, cluster = config.sampling, config.verl
    size = _micro_batch(config)
    files = [str(path) for path in train_files]
    return {
        "data.train_files": files,
        # verl opens them whether it validates or not, and its default is a file in somebody's home.
        "data.val_files": files,
        "data.train_batch_size": config.batch,
        "data.max_prompt_length": sampling.max_prompt_tokens,
        "data.max_response_length": sampling.max_completion_tokens,
        # The rows are in their order already, and each of them counts.
        "data.shuffle": False,
        "data.validation_shuffle": False,
        "data.filter_overlong_prompts": False,
        "data.dataloader_num_workers": 0,
        "data.seed": config.seed,
        "actor_rollout_ref.model.path": str(model_path),
        "actor_rollout_ref.model.custom_chat_template": chat_template,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": sampling.rollouts,
        "actor_rollout_ref.rollout.temperature": sampling.temperature,
        "actor_rollout_ref.rollout.top_p": sampling.top_p,
        "actor_rollout_ref.rollout.top_k": -1,
        "actor_rollout_ref.rollout.seed": seed,
        "actor_rollout_ref.rollout.gpu_memory_utilization": sampling.gpu_memory,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": cluster.tensor_parallel,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": size,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": size,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "RewardManager",
        "reward.reward_manager.module.path": "pkg://ckptlin.rl.verl.reward",
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "trainer.nnodes": cluster.nodes,
        "trainer.n_gpus_per_node": cluster.gpus_per_node,
        "trainer.default_local_dir": str(out_dir),
        # The file is PROJECT/EXPERIMENT.jsonl, and an absolute project stays where it is.
        "trainer.logger": ["file"],
        "trainer.project_name": str(out_dir.parent),
        "trainer.experiment_name": "metrics",
    }


def _algorithm(config: TrainConfig) -> dict[str, Any]:
    algorithm, spec = config.algorithm, config.algorithm.spec
    low, high = algorithm.clip_range
    estimator, by_deviation = _ESTIMATORS[spec.advantage]
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": estimator,
        "algorithm.norm_adv_by_std_in_grpo": by_deviation,
        "algorithm.use_kl_in_reward": False,
        "algorithm.gamma": 1.0,
        "critic.enable": False,
        f"{actor}.ppo_mini_batch_size": config.mini_batch,
        f"{actor}.ppo_micro_batch_size_per_gpu": _micro_batch(config),
        f"{actor}.ppo_epochs": config.passes,
        f"{actor}.shuffle": False,
        f"{actor}.clip_ratio": low,
        f"{actor}.clip_ratio_low": low,
        f"{actor}.clip_ratio_high": high,
        f"{actor}.clip_ratio_c": _NO_DUAL_CLIP,
        f"{actor}.policy_loss.loss_mode": _LOSS_MODES[spec.ratio],
        f"{actor}.loss_agg_mode": _LOSS_MEANS[spec.loss_mean],
        f"{actor}.loss_scale_factor": (
            config.sampling.max_completion_tokens if spec.loss_mean == "constant-length" else None
        ),
        f"{actor}.entropy_coeff": algorithm.entropy_coef,
        f"{actor}.use_kl_loss": algorithm.kl_coef > 0,
        f"{actor}.kl_loss_coef": algorithm.kl_coef,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.checkpoint.save_contents": _SAVED,
        f"{actor}.checkpoint.load_contents": _LOADED,
        f"{actor}.checkpoint.async_save": False,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"{actor}.fsdp_config.seed": config.seed,
    }


def _optimizer(config: TrainConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    further = {"eps": optimizer.epsilon} if optimizer.name == "adamw" else {"momentum": optimizer.momentum}
    return {
        f"actor_rollout_ref.actor.optim.{name}": value
        for name, value in {
            "optimizer": _OPTIMIZERS[optimizer.name],
            "optimizer_impl": "torch.optim",
            "lr": optimizer.lr,
            "betas": (optimizer.beta1, optimizer.beta2),
            "weight_decay": optimizer.weight_decay,
            "override_optimizer_config": further,
            # 0 stands for no limit; verl would scale every gradient to 0.
            "clip_grad": optimizer.max_grad_norm or math.inf,
            "lr_scheduler_type": optimizer.schedule,
            # verl moves the schedule once a step, whatever its number of updates.
            "lr_warmup_steps": optimizer.warmup_steps,
            "lr_warmup_steps_ratio": 0.0,
            "min_lr_ratio": 0.0,
        }.items()
    }


def _micro_batch(config: TrainConfig) -> int:
    return micro_batch(config, num_processes=config.verl.num_gpus, on_gpu=True)


def _written(config: TrainConfig, settings: Mapping[str, Any]) -> tuple[str, ...]:
    further = further_settings(config)
    for key in further:
        if any(ours == key or ours.startswith(f"{key}.") for ours in settings):
            raise InputError(
                f"verl.overrides sets {key}, which the configuration sets already; change it there"
            )
    return tuple(f"{key}={hydra_value(value)}" for key, value in {**settings, **further}.items())
