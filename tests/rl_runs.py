"""What the trainer's tests train: a tiny Qwen2 of random weights on the demo's sums, rewarded for digits."""

from pathlib import Path
from typing import Any

from ckptlin.problems import Problem
from ckptlin.problems.sums import build_tokenizer
from ckptlin.rl.config import (
    AlgorithmConfig,
    DataConfig,
    LogConfig,
    OptimizerConfig,
    RewardConfig,
    SamplingConfig,
    StopConfig,
    TrainConfig,
)

__all__ = ["NOTED", "bad_reward", "noted", "save_tiny_model", "share_of_digits", "tiny_config"]

# A function of an importable module is a grader: also in another process.
REWARD = "tests.rl_runs:share_of_digits"


def share_of_digits(completion: str, problem: Problem) -> float:
    """Reward digits: even random weights write some, and more of them are easily learned."""
    return sum(letter.isdigit() for letter in completion) / 16


# The prompts of the answers that `noted` was given, in their order.
NOTED: list[str] = []


def noted(completion: str, problem: Problem) -> float:
    """Reward digits, and note which prompts were trained on."""
    NOTED.append(problem.id)
    return share_of_digits(completion, problem)


def bad_reward(completion: str, problem: Problem) -> float:
    """Return what is no reward."""
    return float("nan")


def save_tiny_model(path: Path, *, seed: int = 0, **options: Any) -> Path:
    """Save a Qwen2 of some 5,000 random weights, with the tokenizer of the sums."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**shape | ids | options))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_config(model: Path, **changes: Any) -> TrainConfig:
    """Return a run of seconds: 4 prompts of 4 answers a step, two updates a step."""
    settings: dict[str, Any] = {
        "model": str(model),
        "steps": 4,
        "batch": 4,
        "mini_batch": 2,
        "save_every": 2,
        "data": DataConfig("sums:train", limit=10),
        "reward": RewardConfig(REWARD),
        "algorithm": AlgorithmConfig("grpo"),
        "sampling": SamplingConfig(rollouts=4, max_prompt_tokens=16, max_completion_tokens=8),
        "optimizer": OptimizerConfig(lr=1e-3),
        "log": LogConfig(tensorboard=False),
        "stop": StopConfig(collapse=0.0),
        "device": "cpu",
    }
    return TrainConfig(**settings | changes)
