"""What verl is told of a configuration; whether verl understands it is tested in test_verl.py."""

import ast
import math
import re
from pathlib import Path

import pytest

from ckptlin.errors import InputError
from ckptlin.rl.algorithms import ALGORITHMS
from ckptlin.rl.config import AlgorithmConfig, GuardConfig, OptimizerConfig, RlExtraConfig, VerlConfig
from ckptlin.rl.verl.hydra import hydra_value
from ckptlin.rl.verl.overrides import sampling_overrides, verl_overrides

ACTOR = "actor_rollout_ref.actor"
FILES = {"train_files": [Path("/run/verl/prompts.parquet")], "out_dir": Path("/run/verl/checkpoints")}


def settings(overrides):
    pairs = [override.partition("=")[::2] for override in overrides]
    assert len(dict(pairs)) == len(pairs), "a key is set twice"
    return dict(pairs)


def told(config, **changes):
    arguments = FILES | {"total_steps": 6, "model_path": "/run/checkpoint-0"} | changes
    return settings(verl_overrides(config, **arguments))


def test_the_papers_settings(make_config):
    """The set-up of arXiv 2601.04537, which was trained with verl."""
    config = make_config(
        batch=128,
        mini_batch=64,
        optimizer=OptimizerConfig(),
        sampling__rollouts=16,
        sampling__max_prompt_tokens=2048,
        sampling__max_completion_tokens=16384,
        save_every=50,
    )
    found = told(config)
    expected = {
        "algorithm.adv_estimator": "'grpo'",
        "algorithm.norm_adv_by_std_in_grpo": "true",
        "algorithm.use_kl_in_reward": "false",
        "data.train_batch_size": "128",
        "data.max_prompt_length": "2048",
        "data.max_response_length": "16384",
        f"{ACTOR}.ppo_mini_batch_size": "64",
        f"{ACTOR}.optim.lr": "1e-06",
        f"{ACTOR}.optim.weight_decay": "0.0",
        f"{ACTOR}.clip_ratio_low": "0.2",
        f"{ACTOR}.clip_ratio_high": "0.28",
        f"{ACTOR}.use_kl_loss": "false",
        f"{ACTOR}.entropy_coeff": "0.0",
        f"{ACTOR}.loss_agg_mode": "'seq-mean-token-mean'",
        "actor_rollout_ref.rollout.n": "16",
        "actor_rollout_ref.rollout.temperature": "1.0",
        "trainer.save_freq": "50",
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "estimator", "by_deviation", "mean", "mode"),
    [
        ("grpo", "grpo", "true", "seq-mean-token-mean", "vanilla"),
        ("dapo-loss", "grpo", "true", "token-mean", "vanilla"),
        ("dr_grpo", "grpo", "false", "seq-mean-token-sum-norm", "vanilla"),
        ("gspo", "grpo", "true", "seq-mean-token-mean", "gspo"),
        ("reinforce++", "reinforce_plus_plus", "true", "token-mean", "vanilla"),
        ("reinforce++-baseline", "reinforce_plus_plus_baseline", "true", "token-mean", "vanilla"),
    ],
)
def test_algorithms_by_verls_names(make_config, name, estimator, by_deviation, mean, mode):
    found = told(make_config(algorithm=AlgorithmConfig(name)))
    low, high = ALGORITHMS[name].clip_low, ALGORITHMS[name].clip_high
    assert found["algorithm.adv_estimator"] == f"'{estimator}'"
    assert found["algorithm.norm_adv_by_std_in_grpo"] == by_deviation
    assert found[f"{ACTOR}.loss_agg_mode"] == f"'{mean}'"
    assert found[f"{ACTOR}.policy_loss.loss_mode"] == f"'{mode}'"
    assert (float(found[f"{ACTOR}.clip_ratio_low"]), float(found[f"{ACTOR}.clip_ratio_high"])) == (low, high)
    # The constant that Dr. GRPO divides by is the largest possible length.
    assert found[f"{ACTOR}.loss_scale_factor"] == ("16" if name == "dr_grpo" else "null")


def test_every_algorithm_but_the_supervised_one_is_told(make_config):
    for name, algorithm in ALGORITHMS.items():
        if not algorithm.is_supervised:
            assert told(make_config(algorithm=AlgorithmConfig(name)))


def test_optimizers(make_config):
    adamw = told(make_config(optimizer=OptimizerConfig("adamw", beta1=0.8, beta2=0.95, epsilon=1e-7)))
    assert adamw[f"{ACTOR}.optim.optimizer"] == "'AdamW'"
    assert adamw[f"{ACTOR}.optim.betas"] == "[0.8,0.95]"
    assert adamw[f"{ACTOR}.optim.override_optimizer_config"] == "{eps:1e-07}"
    sgd = told(make_config(optimizer=OptimizerConfig("sgd", lr=0.1, momentum=0.9, weight_decay=0.01)))
    assert sgd[f"{ACTOR}.optim.optimizer"] == "'SGD'"
    assert sgd[f"{ACTOR}.optim.override_optimizer_config"] == "{momentum:0.9}"
    assert (sgd[f"{ACTOR}.optim.lr"], sgd[f"{ACTOR}.optim.weight_decay"]) == ("0.1", "0.01")
    unlimited = told(make_config(optimizer=OptimizerConfig(max_grad_norm=0)))
    assert float(unlimited[f"{ACTOR}.optim.clip_grad"]) == math.inf
    cosine = told(make_config(optimizer=OptimizerConfig(schedule="cosine", warmup_steps=3)))
    assert cosine[f"{ACTOR}.optim.lr_scheduler_type"] == "'cosine'"
    assert cosine[f"{ACTOR}.optim.lr_warmup_steps"] == "3"


def test_kl_and_entropy(make_config):
    found = told(make_config(algorithm=AlgorithmConfig(kl_coef=0.01, entropy_coef=0.002)))
    assert found[f"{ACTOR}.use_kl_loss"] == "true"
    assert found[f"{ACTOR}.kl_loss_coef"] == "0.01"
    assert found[f"{ACTOR}.entropy_coeff"] == "0.002"


def test_a_new_start_and_one_that_goes_on(make_config):
    new = told(make_config())
    assert new["trainer.resume_mode"] == "'disable'"
    assert new["trainer.resume_from_path"] == "null"
    assert new["actor_rollout_ref.model.path"] == "'/run/checkpoint-0'"
    resumed = told(
        make_config(), resume_from=Path("/run/resume/4-0/global_step_4"), save_every=1, rollout_seed=9
    )
    assert resumed["trainer.resume_mode"] == "'resume_path'"
    assert resumed["trainer.resume_from_path"] == "'/run/resume/4-0/global_step_4'"
    assert resumed["trainer.save_freq"] == "1"
    assert resumed["actor_rollout_ref.rollout.seed"] == "9"


def test_the_model_for_everybody_is_saved_and_the_shards_to_go_on_from(make_config):
    found = told(make_config())
    assert set(ast.literal_eval(found[f"{ACTOR}.checkpoint.save_contents"])) == {
        "model", "optimizer", "extra", "hf_model"
    }  # fmt: skip
    assert set(ast.literal_eval(found[f"{ACTOR}.checkpoint.load_contents"])) == {"model", "optimizer", "extra"}
    assert found[f"{ACTOR}.fsdp_config.model_dtype"] == "'fp32'"


def test_rows_come_in_their_order_and_all_of_them(make_config):
    found = told(make_config())
    assert (
        found["data.shuffle"] == found["data.filter_overlong_prompts"] == f"{found['critic.enable']}" == "false"
    )
    assert found["data.train_files"] == "['/run/verl/prompts.parquet']"


def test_the_cluster_and_the_share_of_each_gpu(make_config):
    cluster = VerlConfig(nodes=2, gpus_per_node=4, tensor_parallel=2)
    found = told(make_config(batch=64, mini_batch=32, verl=cluster))
    assert (found["trainer.nnodes"], found["trainer.n_gpus_per_node"]) == ("2", "4")
    assert found["actor_rollout_ref.rollout.tensor_model_parallel_size"] == "2"
    # 32 prompts × 4 rollouts on 8 GPUs are 16 answers each; as many go through the model at once as have
    # 16384 tokens together, at most 8.
    assert found[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] == "4"
    short = {"sampling__max_prompt_tokens": 100, "sampling__max_completion_tokens": 100}
    found = told(make_config(batch=64, mini_batch=32, verl=cluster, **short))
    assert found[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] == "8"
    chosen = told(make_config(batch=64, mini_batch=32, micro_batch=4, verl=cluster))
    assert chosen[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] == "4"
    for part in ("rollout", "ref"):
        assert chosen[f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu"] == "4"


def test_answers_alone(make_config):
    config = make_config(sampling__temperature=0.7, sampling__top_p=0.9)
    arguments = {"files": FILES["train_files"], "out_dir": FILES["out_dir"]}
    found = settings(
        sampling_overrides(
            config, **arguments, answers_dir=Path("/a"), model_path=Path("/m"), num_samples=8, seed=3
        )
    )
    assert found["trainer.val_only"] == found["trainer.val_before_train"] == "true"
    val = "actor_rollout_ref.rollout.val_kwargs"
    assert (found[f"{val}.n"], found[f"{val}.temperature"], found[f"{val}.top_p"]) == ("8", "0.7", "0.9")
    assert found[f"{val}.do_sample"] == "true"
    assert found["trainer.validation_data_dir"] == "'/a'"
    assert found["trainer.save_freq"] == "-1"


def test_further_settings_are_handed_on(make_config):
    further = {
        "actor_rollout_ref.actor.fsdp_config.param_offload": True,
        "actor_rollout_ref": {"rollout": {"max_num_seqs": 64, "engine_kwargs.vllm": {}}},
    }
    found = told(make_config(verl=VerlConfig(overrides=further)))
    assert found[f"{ACTOR}.fsdp_config.param_offload"] == "true"
    assert found["actor_rollout_ref.rollout.max_num_seqs"] == "64"
    assert found["actor_rollout_ref.rollout.engine_kwargs.vllm"] == "{}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"actor_rollout_ref.actor.optim.lr": 1.0},
            "sets actor_rollout_ref.actor.optim.lr, which the configuration",
        ),
        (
            {"actor_rollout_ref.actor.optim": None},
            "sets actor_rollout_ref.actor.optim, which the configuration",
        ),
        ({"data": {"seed": 1}}, "sets data.seed, which decides"),
        ({"trainer.total_epochs": 1}, "sets trainer.total_epochs, which decides"),
        ({"reward.num_workers": 1}, "decides what is trained, graded or saved"),
        ({"+algorithm.x": 1}, "dotted name"),
        ({"a": 1}, "dotted name"),
        ({"a.b": "${c.d}"}, "takes ${ for a reference"),
        ({"a.b": math.nan}, "made of JSON's types"),
        ({"a.b": object()}, "made of JSON's types"),
    ],
)
def test_further_settings_are_refused_where_they_would_train_something_else(make_config, overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        told(make_config(verl=VerlConfig(overrides=overrides)))


def test_texts_that_hydra_would_read_otherwise_are_refused():
    for text in ("a${b}", "a\0b", "a\x1bb"):
        with pytest.raises(InputError, match="cannot be given to verl"):
            hydra_value(text)


LEGS = RlExtraConfig(m=2, n=2)
REFUSED = [
    ({"algorithm": AlgorithmConfig("sft")}, "supervised trainer"),
    ({"sampling__backend": "generate"}, "set sampling.backend=vllm-colocate"),
    ({"sampling__backend": "vllm-server", "sampling__server_url": "http://localhost"}, "vllm-colocate"),
    ({"device": "cpu"}, "needs GPUs"),
    ({"optimizer__schedule": "linear"}, "schedules constant and cosine"),
    ({"extra": RlExtraConfig(m=2, n=2, optimizer="keep")}, "cannot keep the optimizer's state across a jump"),
    ({"extra": LEGS, "optimizer__schedule": "cosine"}, "set optimizer.schedule=constant"),
    ({"extra": LEGS, "optimizer__warmup_steps": 1}, "optimizer.warmup_steps=0"),
    ({"optimizer__reset_every": 2, "optimizer__schedule": "cosine"}, "set optimizer.schedule=constant"),
    ({"extra": LEGS, "algorithm": AlgorithmConfig(kl_coef=0.1)}, "set algorithm.kl_coef=0"),
    ({"optimizer__reset_every": 2, "algorithm": AlgorithmConfig(kl_coef=0.1)}, "set algorithm.kl_coef=0"),
    ({"verl": VerlConfig(gpus_per_node=3)}, "cannot be shared out evenly among 3 processes"),
    ({"verl": VerlConfig(gpus_per_node=2), "micro_batch": 8}, "must divide the 4 sequences"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_verl_cannot_do_is_refused_in_a_sentence(make_config, changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        told(make_config(**changes))
    assert "\n" not in str(raised.value)


def test_kl_to_the_start_is_refused_where_verl_has_no_start(make_config):
    from ckptlin.rl.config import LogConfig

    with pytest.raises(InputError, match=r"set log\.kl_every=0"):
        told(make_config(log=LogConfig(kl_every=1)))
    assert told(make_config(log=LogConfig(kl_every=1), algorithm=AlgorithmConfig(kl_coef=0.1)))


def test_what_verl_can_do_of_rl_extra(make_config):
    assert told(make_config(extra=LEGS))
    assert told(
        make_config(extra=RlExtraConfig(m=2, n=0, optimizer="keep"), algorithm=AlgorithmConfig(kl_coef=0.1))
    )
    guarded = RlExtraConfig(m=2, n=2, guard=GuardConfig(enabled=True))
    assert told(make_config(extra=guarded, data__held_out="sums:test"))


def test_gpus_must_be_shared_out_to_copies_of_the_model():
    with pytest.raises(InputError, match=r"tensor_parallel \(3\) must divide the 8 GPUs"):
        VerlConfig(nodes=2, gpus_per_node=4, tensor_parallel=3)
    with pytest.raises(InputError, match=r"verl.nodes is 0"):
        VerlConfig(nodes=0)
