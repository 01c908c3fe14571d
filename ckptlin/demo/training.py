"""The demo's model and its training by ``transformers.Trainer``, as a user would write it.

First a short pretraining at a high, decaying learning rate, so that the model already knows something; then the
run that is analysed, at a low constant one with a fresh optimizer, as post-training does it.  Everything is
float32, and the checkpoints are what the trainer saves.  It is supervised training, not reinforcement learning:
there is no reward and no rollout.

One thread computes.  Where other programs run, threads that wait for each other cost more than they do on
matrices this small (two on a busy machine of two processors: 2 s a step instead of 0.04), and the figures would
depend on their number.
"""

import importlib.util
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptlin.demo.corpus import EncodedProblems
from ckptlin.errors import InputError, MissingExtraError
from ckptlin.progress import Progress

__all__ = ["DemoSettings", "new_model", "pretrain", "require_models_extra", "train_run", "undisturbed"]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sizes of the demo; the defaults were chosen over three seeds, see `ckptlin.demo.demo`.

    Attributes
    ----------
    num_terms : int
        Digits in a sum.
    num_train, num_held_out : int
        Different problems to train on, and others to evaluate on.
    hidden_size, num_layers : int
    pretrain_steps, pretrain_batch : int
    pretrain_lr : float
    run_steps, run_batch : int
    run_lr : float
    checkpoint_every : int
        Steps between checkpoints.
    last_seen : int
        The methods see the checkpoints up to this step, and predict that of the last step.
    """

    num_terms: int = 5
    num_train: int = 30_000
    num_held_out: int = 1_000
    hidden_size: int = 64
    num_layers: int = 2
    pretrain_steps: int = 500
    pretrain_batch: int = 64
    pretrain_lr: float = 3e-3
    run_steps: int = 480
    run_batch: int = 128
    run_lr: float = 3e-5
    checkpoint_every: int = 30
    last_seen: int = 240

    def __post_init__(self) -> None:
        if self.run_steps % self.checkpoint_every or self.last_seen % self.checkpoint_every:
            raise InputError(
                f"a checkpoint is saved every {self.checkpoint_every} steps, and run_steps ({self.run_steps}) "
                f"and last_seen ({self.last_seen}) must be multiples of that"
            )
        if not 0 < self.last_seen < self.run_steps:
            raise InputError(
                f"last_seen ({self.last_seen}) must lie between 0 and run_steps ({self.run_steps})"
            )
        if self.num_train + self.num_held_out > 10**self.num_terms:
            raise InputError(
                f"there are {10**self.num_terms:,} sums of {self.num_terms} digits, fewer than num_train + "
                f"num_held_out = {self.num_train + self.num_held_out:,}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)


def require_models_extra() -> None:
    """Raise `MissingExtraError` if torch, transformers or accelerate is not installed."""
    for package in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f'the demo trains a model with transformers and needs {package}; pip install "ckptlin[models]"'
            )


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Seed the random numbers, silence transformers, compute in one thread; put everything back afterwards."""
    import torch
    from transformers.utils import logging

    num_threads, verbosity, bars = (
        torch.get_num_threads(),
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
    )
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.callback(torch.set_num_threads, num_threads)
        stack.callback(logging.set_verbosity, verbosity)
        if bars:
            stack.callback(logging.enable_progress_bar)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        # What is silenced are notes on a model without pretrained weights, and a bar for each file saved.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def new_model(settings: DemoSettings, tokenizer: Any) -> Any:
    """Make a Qwen2 model of random weights; tied embeddings, grouped-query attention, biases on q, k and v."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def pretrain(
    model: Any,
    tokenizer: Any,
    problems: EncodedProblems,
    settings: DemoSettings,
    base_dir: Path,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Teach a model the task in the rough, and save it."""
    arguments = {
        "max_steps": settings.pretrain_steps,
        "per_device_train_batch_size": settings.pretrain_batch,
        "learning_rate": settings.pretrain_lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(30, settings.pretrain_steps // 4),
        "save_strategy": "no",
    }
    _train(model, tokenizer, problems, base_dir, arguments, seed, progress, "pretrain")
    model.save_pretrained(base_dir)
    tokenizer.save_pretrained(base_dir)


def train_run(
    model: Any,
    tokenizer: Any,
    problems: EncodedProblems,
    settings: DemoSettings,
    run_dir: Path,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Go on at a low constant learning rate, and save checkpoints: the run that is analysed."""
    arguments = {
        "max_steps": settings.run_steps,
        "per_device_train_batch_size": settings.run_batch,
        "learning_rate": settings.run_lr,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_only_model": True,
    }
    _train(model, tokenizer, problems, run_dir, arguments, seed, progress, "train")


def _train(
    model: Any,
    tokenizer: Any,
    problems: EncodedProblems,
    out_dir: Path,
    arguments: dict[str, Any],
    seed: int,
    progress: Progress,
    title: str,
) -> None:
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    # Progress counts bytes; a token of this corpus is one.
    step_bytes = arguments["per_device_train_batch_size"] * problems.input_ids.shape[1]
    with progress.phase(title, step_bytes * arguments["max_steps"]) as advance:

        class Advance(TrainerCallback):  # type: ignore[misc]  # transformers has no types
            def on_step_end(self, *_: Any, **__: Any) -> None:
                advance(step_bytes)

        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(out_dir),
                seed=seed,
                data_seed=seed,
                use_cpu=True,
                dataloader_pin_memory=False,
                report_to=[],
                logging_strategy="no",
                disable_tqdm=True,
                **arguments,
            ),
            train_dataset=problems,
            data_collator=default_data_collator,
            processing_class=tokenizer,
            callbacks=[Advance()],
        )
        # It takes the place of the progress bar, and would print a dictionary at the end.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
