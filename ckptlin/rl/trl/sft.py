"""TRL's ``SFTTrainer``, fed in our order: supervised training, for contrast."""

from typing import Any

from torch.utils.data import SequentialSampler
from trl import SFTTrainer

__all__ = ["SupervisedTrainer"]


class SupervisedTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Learns solutions.

    Parameters
    ----------
    total_updates : int
        Of the whole run; the schedule of the learning rate spans them.
    """

    def __init__(self, *args: Any, total_updates: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._total_updates = total_updates

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule over the whole run, of which a call trains a stretch."""
        return super().create_scheduler(self._total_updates, optimizer)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)
