"""What happens around TRL's updates in a stretch of steps: restore, count, tell, save.

A transformers callback.  A step ends where a generation's last update was made; only there is anything saved.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ckptlin.rl.config import KL_EVERY, TrainConfig
from ckptlin.rl.run_directory import RunDirectory, link_model
from ckptlin.rl.state import TrainState
from ckptlin.rl.step_log import StepListener, StepRow

__all__ = ["Stretch"]

# The arguments of a trainer, pickled: nothing that a checkpoint needs, and nobody should have to unpickle.
_PICKLED = "training_args.bin"
# What FSDP adds to a resume point: the model again, which is there in float32 already.
_FSDP_MODEL = "pytorch_model_fsdp*"


class Stretch(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """One call of an engine's ``train``.

    Parameters
    ----------
    config : TrainConfig
    state : TrainState
        Where the stretch begins.
    steps : int
        Its length.
    run : RunDirectory
    listener : StepListener

    Attributes
    ----------
    state : TrainState
        The last step that was done, its resume point written or not.
    trainer : transformers.Trainer
        Set once it is made; the callback has to be made before.
    """

    def __init__(
        self, config: TrainConfig, state: TrainState, steps: int, *, run: RunDirectory, listener: StepListener
    ) -> None:
        self.state = state
        self.trainer: Any = None
        self._config = config
        self._begin = state
        self._last = state.step + steps
        self._run = run
        self._listener = listener
        self._restored = False
        self._started_s = self._step_started_s = time.perf_counter()

    @property
    def kl_due(self) -> bool:
        """Whether the step that is being made is one for which the divergence is estimated."""
        every = self._config.log.kl_every
        if every is None:
            is_sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
            every = 0 if is_sharded else KL_EVERY
        return bool(every) and (self.state.step + 1) % every == 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give optimizer and schedule back what they knew."""
        path = self._begin.path
        if self._begin.step == 0:
            return
        if self.trainer.is_deepspeed_enabled:
            if not self._begin.fresh_optimizer:
                from transformers.integrations.deepspeed import deepspeed_load_checkpoint

                deepspeed_load_checkpoint(self.trainer.model_wrapped, str(path), load_module_strict=True)
        elif self._begin.fresh_optimizer:
            self._restore_schedule(path)
        else:
            self.trainer._load_optimizer_and_scheduler(str(path))

    def _restore_schedule(self, path: Path) -> None:
        import torch

        schedule = self.trainer.lr_scheduler
        schedule.load_state_dict(torch.load(path / "scheduler.pt", weights_only=True))
        # A schedule sets the next rate when it steps; what a fresh optimizer has is the first.
        for group, rate in zip(self.trainer.optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the random numbers back their state, after the loaders have drawn their seeds."""
        if self._restored:
            return
        self._restored = True
        if self._begin.step == 0:
            from accelerate.utils import set_seed

            set_seed(self._config.seed, device_specific=True)
        else:
            self.trainer._load_rng_state(str(self._begin.path))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """End a step: tell of it, and save where that is due."""
        if "loss" not in logs or state.global_step % self._config.updates_per_step:
            return
        now = time.perf_counter()
        rollouts = self._config.batch * self._config.rows_per_prompt
        length = logs.get("completions/mean_length")
        generated = 0 if length is None else round(length * rollouts)
        self.state = self.state.after_step(
            updates=self._config.updates_per_step,
            tokens=generated,
            elapsed_s=self._begin.elapsed_s + now - self._started_s,
        )
        row = self._row(logs, generated / (now - self._step_started_s))
        self._step_started_s = now
        self._listener.on_step(row)
        if self.state.leg_steps % self._config.save_every == 0 or self.state.step == self._last:
            self._save()

    def _row(self, logs: dict[str, Any], tokens_per_s: float) -> StepRow:
        def figure(name: str) -> float | None:
            value = logs.get(name)
            return None if value is None else float(value)

        state = self.state
        return StepRow(
            step=state.step,
            virtual_step=state.virtual_step,
            updates=state.updates,
            reward=figure("reward"),
            reward_std=figure("reward_std"),
            length=figure("completions/mean_length"),
            truncated=figure("completions/clipped_ratio"),
            entropy=figure("entropy"),
            clip_share=figure("clip_ratio/region_mean"),
            kl_start=figure("kl_start"),
            loss=float(logs["loss"]),
            grad_norm=figure("grad_norm"),
            lr=float(logs["learning_rate"]),
            tokens=state.tokens,
            tokens_per_s=tokens_per_s,
            elapsed_s=state.elapsed_s,
        )

    def _save(self) -> None:
        trainer, run = self.trainer, self._run
        accelerator = trainer.accelerator
        is_main = accelerator.is_main_process
        with run.new_checkpoint(self.state.virtual_step, is_main=is_main) as path:
            accelerator.wait_for_everyone()
            trainer.save_model(str(path))
            accelerator.wait_for_everyone()
            if is_main:
                (path / _PICKLED).unlink(missing_ok=True)
        checkpoint = run.checkpoint(self.state.virtual_step)
        self.state = replace(self.state, path=run.state_path(self.state))
        with run.new_state(self.state, is_main=is_main) as path:
            accelerator.wait_for_everyone()
            trainer._save_optimizer_and_scheduler(str(path))
            trainer._save_rng_state(str(path))
            accelerator.wait_for_everyone()
            if is_main:
                for extra in path.glob(_FSDP_MODEL):
                    shutil.rmtree(extra) if extra.is_dir() else extra.unlink()
                link_model(checkpoint, path)
        accelerator.wait_for_everyone()
        self._listener.on_checkpoint(self.state.virtual_step, checkpoint)
