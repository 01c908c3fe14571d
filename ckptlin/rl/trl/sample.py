"""Answers sampled without training on them, by transformers: what the guard compares."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ckptlin.errors import GradingError
from ckptlin.grading import Completion, Grader
from ckptlin.problems import Problem
from ckptlin.rl.config import SamplingConfig
from ckptlin.rl.sampled_rewards import SampledRewards

__all__ = ["completions_of", "graded", "sample_rewards"]

# Answers that are drawn at once: at most so many, and so many tokens, whose keys and values fill the memory.
_MOST_ROWS, _MOST_TOKENS = 256, 1 << 18


def completions_of(ids: Sequence[Sequence[int]], tokenizer: Any) -> list[Completion]:
    """Decode answers as graders take them; an answer is finished if it ends in the end-of-sequence token."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    end = tokenizer.eos_token_id
    return [
        Completion(text=text, finished=bool(len(row)) and int(row[-1]) == end)
        for text, row in zip(texts, ids, strict=True)
    ]


def graded(grader: Grader, completions: Sequence[Completion], problems: Sequence[Problem]) -> list[float]:
    """Grade completions, and never hand on what is no number.

    TRL turns NaN and None silently into an advantage of 0, and a comparison with NaN holds no jump back.

    Raises
    ------
    GradingError
        If a score is no finite number.
    """
    scores = grader.grade(completions, problems)
    for score, problem in zip(scores, problems, strict=True):
        if not math.isfinite(score):
            raise GradingError(f"grader `{grader.name}` returned {score!r} for problem `{problem.id}`")
    return [float(score) for score in scores]


def sample_rewards(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    problems: Sequence[Problem],
    grader: Grader,
    *,
    sampling: SamplingConfig,
    num_samples: int,
    seed: int,
) -> SampledRewards:
    """Sample ``num_samples`` answers to each prompt and grade them, leaving the global random numbers alone."""
    import torch

    rewards, tokens = [], 0
    length = sampling.max_prompt_tokens + sampling.max_completion_tokens
    per_batch = max(1, min(_MOST_ROWS, _MOST_TOKENS // length) // num_samples)
    on_gpu = model.device.type == "cuda"
    with (
        torch.random.fork_rng(),
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=on_gpu),
    ):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), per_batch):
            part = list(prompts[start : start + per_batch])
            inputs = tokenizer(part, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs = {
                name: values.to(model.device) for name, values in inputs.items() if name != "token_type_ids"
            }
            written = model.generate(
                **inputs,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                num_return_sequences=num_samples,
                max_new_tokens=sampling.max_completion_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :].tolist()
            ids = [_until_end(row, tokenizer.eos_token_id) for row in written]
            tokens += sum(map(len, ids))
            asked = [problem for problem in problems[start : start + per_batch] for _ in range(num_samples)]
            rewards += graded(grader, completions_of(ids, tokenizer), asked)
    return SampledRewards(np.array(rewards, np.float64).reshape(len(prompts), num_samples), tokens)


def _until_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row
