"""What each algorithm trains by, beside a plain float64 reference: advantages, losses, gradients, clipping."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

from ckptlin.errors import InputError, SelectionError
from ckptlin.rl.algorithms import ALGORITHMS, get_algorithm
from ckptlin.rl.config import AlgorithmConfig, OptimizerConfig, SamplingConfig
from ckptlin.rl.step_log import read_log
from ckptlin.rl.trainer import train
from ckptlin.rl.trl.arguments import grpo_arguments
from ckptlin.rl.trl.model import load_model, load_tokenizer
from tests.rl import reference
from tests.rl_runs import tiny_config

POLICY = [name for name, algorithm in ALGORITHMS.items() if not algorithm.is_supervised]


@pytest.fixture
def make_trainer(tiny_model, tmp_path):
    def make(name, rewards, **changes):
        from datasets import Dataset
        from trl import GRPOConfig

        from ckptlin.rl.trl.grpo import PolicyTrainer

        sampling = SamplingConfig(rollouts=4, max_completion_tokens=8, temperature=0.7)
        config = tiny_config(tiny_model, algorithm=AlgorithmConfig(name), sampling=sampling, **changes)
        arguments = grpo_arguments(config, steps=1, num_processes=1, on_gpu=False)
        values = iter(rewards)
        return PolicyTrainer(
            model=load_model(tiny_model),
            args=GRPOConfig(output_dir=str(tmp_path), **arguments),
            processing_class=load_tokenizer(tiny_model),
            train_dataset=Dataset.from_dict({"prompt": ["1+2=", "3+4=", "5+6=", "7+8="]}),
            reward_funcs=lambda completions, **_: [next(values) for _ in completions],
            algorithm=config.algorithm.spec,
            total_updates=2,
            start_model=lambda: None,
            kl_due=lambda: False,
        ), config

    return make


def generated(trainer):
    """The batch of a step, as its first update would find it, before anything is shuffled."""
    trainer.model.train()
    rows = [{"prompt": prompt} for prompt in trainer.train_dataset["prompt"] for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize("name", POLICY)
def test_advantages(make_trainer, name):
    rewards = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    rewards[2] = 0.5  # a group without spread teaches nothing, or only what the batch says
    trainer, _ = make_trainer(name, rewards.ravel().tolist())
    found = generated(trainer)["advantages"].numpy().reshape(4, 4)
    np.testing.assert_allclose(
        found, reference.advantages(name, rewards.astype(np.float64)), rtol=2e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", POLICY)
def test_losses_and_gradients_of_a_policy_that_has_moved_on(make_trainer, name):
    rewards = np.random.default_rng(1).random((4, 4))
    trainer, config = make_trainer(name, rewards.ravel().tolist())
    torch.manual_seed(3)
    batch = generated(trainer)
    assert "old_per_token_logps" in batch, (
        "with two updates a step the ratios are those of the policy that sampled"
    )
    model = trainer.model
    # As far as many updates would bring it: ratios well outside of the clip ranges.
    scale = 0.002 if name == "gspo" else 0.2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    # A model that TRL has not given another forward pass.
    plain = load_model(config.model).double().eval()
    plain.load_state_dict(model.state_dict())
    half = {key: value[:8] if getattr(value, "ndim", 0) else value for key, value in batch.items()}
    trainer.current_gradient_accumulation_steps = 1
    found = trainer._compute_loss(model, half)
    found.backward()

    mask = half["completion_mask"].double()
    ids = torch.cat([half["prompt_ids"], half["completion_ids"]], dim=1)
    attention = torch.cat([half["prompt_mask"], half["completion_mask"]], dim=1)
    logps = reference.token_logps(plain, ids, attention, mask.shape[1], config.sampling.temperature)
    low, high = config.algorithm.clip_range
    expected = reference.loss(
        name,
        logps,
        half["old_per_token_logps"].double(),
        half["advantages"].double(),
        mask,
        low=low,
        high=high,
        max_length=8,
        total_tokens=batch["completion_mask"].sum().double() / 2,
    )
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    ratio = torch.exp(logps - half["old_per_token_logps"].double())
    outside = ((ratio < 1 - low) | (ratio > 1 + high)) & (mask > 0)
    assert outside.double().sum() > 0.05 * mask.sum()
    for (tensor, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        tolerance = 1e-4 * float(theirs.grad.abs().max()) + 1e-7
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=tolerance, msg=tensor)


def test_the_clip_share_counts_the_tokens_of_a_stale_policy(tiny_model, tmp_path):
    optimizer = OptimizerConfig(lr=2e-2)
    stale = tiny_config(tiny_model, steps=2, mini_batch=1, passes=4, optimizer=optimizer)
    run = train(stale, tmp_path / "stale").out_dir
    rows = read_log(run / "log.csv")
    assert rows[-1].updates == 2 * 16
    assert max(row.clip_share for row in rows) > 0.05
    once = replace(stale, mini_batch=4, passes=1)
    run = train(once, tmp_path / "once").out_dir
    assert all(row.clip_share == 0 for row in read_log(run / "log.csv"))


def test_the_papers_defaults():
    grpo = get_algorithm("grpo")
    assert (grpo.clip_low, grpo.clip_high, grpo.advantage, grpo.loss_mean) == (
        0.2, 0.28, "group", "sequence-then-token",
    )  # fmt: skip


def test_dapo_is_not_promised_without_its_sampling():
    with pytest.raises(SelectionError, match="dynamic sampling"):
        get_algorithm("dapo")


@pytest.mark.parametrize(
    ("backend", "url"), [("vllm-colocate", None), ("vllm-server", "http://127.0.0.1:8000")]
)
def test_trl_takes_the_arguments_of_rollouts_by_vllm(tiny_model, tmp_path, backend, url):
    from trl import GRPOConfig

    sampling = SamplingConfig(
        rollouts=4, max_prompt_tokens=16, max_completion_tokens=8, backend=backend, server_url=url
    )
    arguments = grpo_arguments(
        tiny_config(tiny_model, sampling=sampling), steps=1, num_processes=1, on_gpu=False
    )
    made = GRPOConfig(output_dir=str(tmp_path), **arguments)
    assert (made.use_vllm, made.vllm_mode, made.vllm_server_base_url) == (True, backend[5:], url)
    assert made.vllm_max_model_length == 24


def test_shares_of_a_batch_among_processes_and_devices(tiny_model):
    config = tiny_config(tiny_model, batch=8, mini_batch=4)
    one = grpo_arguments(config, steps=3, num_processes=1, on_gpu=False)
    four = grpo_arguments(config, steps=3, num_processes=4, on_gpu=True)
    for arguments, processes in ((one, 1), (four, 4)):
        size = arguments["per_device_train_batch_size"]
        # A step is 8 prompts of 4 answers, in two updates, whatever the number of processes.
        assert size * arguments["steps_per_generation"] * processes == 32
        assert size * arguments["gradient_accumulation_steps"] * processes == 16
        assert arguments["max_steps"] == 6
    with pytest.raises(InputError, match="cannot be shared out evenly among 3"):
        grpo_arguments(config, steps=1, num_processes=3, on_gpu=False)


def test_the_examples_of_the_trainer_hold():
    """Its module loads TRL, whose warnings would be errors where examples are collected."""
    from ckptlin.rl.trl import grpo

    found = doctest.testmod(grpo)
    assert (found.failed, found.attempted) == (0, 1)
