"""Make the demo's base model: ``python -m ckptlin.demo.make_base OUT --seed 0``.

It learns sums from solutions with mistakes.  Each running total is off with probability 0.2, by one or two, and
the totals after it go on from the wrong one, as the steps of a careless solution do.  Such a model knows how to
add, and often adds wrongly: at temperature 1 about 0.8⁴ = 41% of its answers are right.  That is what
reinforcement learning with verifiable rewards starts from: something to reward in most groups of answers, and
room above.

Mistakes are drawn anew for every batch, so that none can be learned by heart.  The loop is plain AdamW, in one
thread; on one machine, with one version of torch, a seed gives the same bytes.  It takes two to three minutes
of one core, which the demo is spared: its output is kept in ``ckptlin/demo/base``.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin._version import __version__
from ckptlin.atomic import write_file
from ckptlin.demo.corpus import encode
from ckptlin.demo.isolation import undisturbed
from ckptlin.errors import InputError, OutputExistsError
from ckptlin.problems import Problem, draw_sums
from ckptlin.problems.sums import build_tokenizer

__all__ = ["RECORD_NAME", "BaseSettings", "careless", "make_base", "new_model"]

RECORD_NAME = "base.json"
_MISTAKES = (-2, -1, 1, 2)
_HEAD_SIZE = 32  # the smallest that vLLM takes on a CPU
_SPARE_ROWS = 1  # of the embedding: 16 rows for 15 tokens
_NUM_HELD_OUT, _NUM_SAMPLES = 2_000, 4


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """What a base model is, and how it learns.

    Attributes
    ----------
    num_terms : int
        Digits in a sum.
    hidden_size, num_layers : int
        A multiple of 32, the size of a head; there is one key-value head.
    error_rate : float
        Probability that a running total is off.
    steps, batch : int
        Updates, and sums in each.
    lr : float
        The highest; after the warm-up it falls to 0 along a line.
    warmup_steps : int
    """

    num_terms: int = 5
    hidden_size: int = 64
    num_layers: int = 3
    error_rate: float = 0.2
    steps: int = 3_000
    batch: int = 128
    lr: float = 3e-3
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        if self.hidden_size % _HEAD_SIZE or self.hidden_size < _HEAD_SIZE:
            raise InputError(f"hidden_size must be a multiple of {_HEAD_SIZE}, not {self.hidden_size}")
        if not 0 <= self.error_rate <= 1:
            raise InputError(f"error_rate is a probability, not {self.error_rate}")
        if not 0 <= self.warmup_steps < self.steps:
            raise InputError(f"warmup_steps ({self.warmup_steps}) must lie within the {self.steps} steps")


def careless(
    problems: Sequence[Problem], *, error_rate: float, random: np.random.Generator
) -> tuple[Problem, ...]:
    """Give sums solutions with mistakes; their answers stay right.

    Each running total is off with probability ``error_rate``, by 1 or 2 to either side (upwards where it would
    fall below 0), and those after it go on from what was written.

    Examples
    --------
    >>> from ckptlin.problems import make_sum
    >>> [made] = careless([make_sum((3, 7, 5))], error_rate=1.0, random=np.random.default_rng(0))
    >>> made.solution, made.answer
    ('9;12', '10;15')
    """
    digits = np.array([[int(digit) for digit in problem.problem[:-1].split("+")] for problem in problems])
    shape = digits.shape[0], digits.shape[1] - 1
    off = np.where(random.random(shape) < error_rate, random.choice(_MISTAKES, shape), 0)
    total, written = digits[:, 0], []
    for term in range(1, digits.shape[1]):
        right, mistake = total + digits[:, term], off[:, term - 1]
        total = np.where(right + mistake < 0, right - mistake, right + mistake)
        written.append(total)
    solutions = [";".join(map(str, row)) for row in np.stack(written, axis=1).tolist()]
    return tuple(replace(p, solution=solution) for p, solution in zip(problems, solutions, strict=True))


def new_model(settings: BaseSettings, tokenizer: Any) -> Any:
    """Make a Qwen2 model of random weights; tied embeddings, grouped-query attention, biases on q, k and v."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer) + _SPARE_ROWS,
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.hidden_size // _HEAD_SIZE,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def make_base(out_dir: Path, *, seed: int = 0, settings: BaseSettings | None = None) -> dict[str, Any]:
    """Train a base model on the sums of the train split, and save it with a record of how it was made.

    Parameters
    ----------
    out_dir : Path
    seed : int
        Of the weights, the order of the sums and their mistakes.
    settings : BaseSettings, optional
        Default: the demo's.

    Returns
    -------
    dict
        The record, ``base.json``: settings, versions, and the loss over the last hundred steps.

    Raises
    ------
    OutputExistsError
        If there is something in ``out_dir``.
    """
    settings = settings or BaseSettings()
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise OutputExistsError(f"{out_dir} is there already; choose another directory")
    tokenizer = build_tokenizer()
    problems = draw_sums(split="train", num_terms=settings.num_terms, seed=seed)
    with undisturbed(seed):
        model = new_model(settings, tokenizer)
        losses = _learn(model, tokenizer, problems, settings, np.random.default_rng(seed))
        model.save_pretrained(out_dir)
        tokenizer.save_pretrained(out_dir)
    record = {
        "created_by": f"ckptlin {__version__}, ckptlin.demo.make_base",
        "num_params": model.num_parameters(),
        "seed": seed,
        "settings": asdict(settings),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "loss": float(np.mean(losses[-100:])),
    }
    _save_record(out_dir, record)
    return record


def _learn(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    settings: BaseSettings,
    random: np.random.Generator,
) -> list[float]:
    """Train, and return the loss of every step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    warmup, steps = settings.warmup_steps, settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))
    )
    model.train()
    losses = []
    for _ in range(steps):
        chosen = [problems[i] for i in random.integers(len(problems), size=settings.batch)]
        batch = encode(careless(chosen, error_rate=settings.error_rate, random=random), tokenizer)
        logits = model(input_ids=torch.from_numpy(batch.input_ids)).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.from_numpy(batch.labels[:, 1:]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _save_record(out_dir: Path, record: dict[str, Any]) -> None:
    write_file(out_dir / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())


def main() -> None:
    """Make the demo's base model, and measure what it can do on sums that it has not seen."""
    from ckptlin.demo.evaluation import evaluate

    parser = argparse.ArgumentParser(description="Make the demo's base model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.process_time()
    record = make_base(args.out, seed=args.seed)
    cpu_s = time.process_time() - start
    held_out = draw_sums(_NUM_HELD_OUT, split="test")
    found = evaluate(args.out, held_out, num_samples=_NUM_SAMPLES, seed=args.seed)
    record["held_out"] = {"split": "sums:test", **found.to_dict()}
    _save_record(args.out, record)
    sys.stdout.write(
        f"{args.out}: {record['num_params']:,} parameters, loss {record['loss']:.4f}, pass@1 at temperature 1 "
        f"{found.pass_at_1:.3f} ± {found.standard_error:.3f} on {_NUM_HELD_OUT:,} held-out sums, "
        f"{cpu_s:.0f} s of CPU\n"
    )


if __name__ == "__main__":
    main()
