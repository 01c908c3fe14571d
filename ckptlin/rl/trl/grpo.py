"""TRL's ``GRPOTrainer`` with what it lacks: whitening over the batch, and the divergence from the start.

Read with TRL 1.16: ``_calculate_rewards`` returns the rewards of all processes,
``_generate_and_score_completions`` a dictionary of this process's rows, ``advantages`` among them.
"""

from collections.abc import Callable
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import selective_log_softmax

from ckptlin.rl.algorithms import Algorithm

__all__ = ["PolicyTrainer", "whitened"]

_EPSILON = 1e-8


def whitened(rewards: torch.Tensor) -> torch.Tensor:
    """Return (r − mean) / deviation over all rewards: the advantages of REINFORCE++ (arXiv 2501.03262, eq. 5).

    Examples
    --------
    >>> [round(value, 3) for value in whitened(torch.tensor([0.0, 1.0, 1.0, 0.0])).tolist()]
    [-0.866, 0.866, 0.866, -0.866]
    """
    return (rewards - rewards.mean()) / (rewards.std() + _EPSILON)


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """GRPO and its family.

    Parameters
    ----------
    algorithm : Algorithm
    total_updates : int
        Of the whole run; the schedule of the learning rate spans them.
    start_model : callable
        Returns the model that the run started from, on this device.
    kl_due : callable
        Tells whether the divergence from it is to be estimated for the batch that is generated now.
    """

    def __init__(
        self,
        *args: Any,
        algorithm: Algorithm,
        total_updates: int,
        start_model: Callable[[], Any],
        kl_due: Callable[[], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._algorithm = algorithm
        self._total_updates = total_updates
        self._start_model = start_model
        self._kl_due = kl_due
        self._rewards = torch.zeros(0)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule over the whole run, of which a call trains a stretch."""
        return super().create_scheduler(self._total_updates, optimizer)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._rewards = rewards.sum(dim=1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        if self._algorithm.advantage == "batch":
            first = self.accelerator.process_index * len(inputs)
            batch["advantages"] = whitened(self._rewards)[first : first + len(inputs)]
        if self._kl_due():
            self._metrics["train"]["kl_start"].append(self._divergence(batch))
        return batch

    def _divergence(self, batch: Any) -> float:
        """Estimate KL(policy ‖ start) per token from the policy's own samples: r − 1 − log r, r = p_start / p.

        Never negative, and of little variance (Schulman, "Approximating KL divergence", 2020, k3).
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        scored = batch["completion_mask"].float()
        size, num_tokens = self.args.per_device_train_batch_size, scored.shape[1]
        with torch.no_grad():
            policy = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, num_tokens, batch_size=size
            )[0]
            start = torch.cat(
                [
                    self._start_logps(*rows, num_tokens)
                    for rows in zip(ids.split(size), mask.split(size), strict=True)
                ]
            )
        log_ratio = start - policy
        sums = torch.stack([((log_ratio.exp() - 1 - log_ratio) * scored).sum(), scored.sum()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return float(total / max(count, 1.0))

    def _start_logps(self, ids: torch.Tensor, mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return log-probabilities ``(rows, num_tokens)`` of the last tokens; TRL's own wants its model."""
        with self.accelerator.autocast():
            model = self._start_model()
            logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=num_tokens + 1).logits
        # Row by row inside: the probabilities of a whole vocabulary at every token of a batch fill a GPU.
        return selective_log_softmax(logits[:, :-1] / self.temperature, ids[:, -num_tokens:])
