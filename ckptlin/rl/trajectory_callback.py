"""`TrajectoryCallback`: a trajectory store that grows while anybody's own transformers or TRL trainer trains.

It needs transformers when it is imported, being a class of theirs.
"""

import logging
import os
from pathlib import Path
from typing import Any

from ckptlin.errors import MissingExtraError
from ckptlin.rl.trajectory import R2SoFar, StoreAppender

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError:
    raise MissingExtraError(
        'TrajectoryCallback is for trainers of transformers; pip install "ckptlin[models]"'
    ) from None

__all__ = ["TrajectoryCallback"]

_logger = logging.getLogger(__name__)


class TrajectoryCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Appends each checkpoint that a trainer saves to a trajectory store, and logs R² so far.

    R² goes to the logger ``ckptlin.rl.trajectory_callback``, to the trainer's ``state.log_history`` and to
    ``r2.csv`` in its output directory.  What fails at the store is logged as a warning, and training goes on.
    Of a trainer in several processes only the main one appends.

    Parameters
    ----------
    store : path-like
        Directory of the store, or a URL; made at the first save.
    base : path-like, optional
        The model that training begins from, as step 0: a trainer does not save that.

    Attributes
    ----------
    found : list of R2SoFar

    Examples
    --------
    ::

        trainer = Trainer(model, args, ..., callbacks=[TrajectoryCallback("run.store", base="./base")])
    """

    def __init__(self, store: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None) -> None:
        self.found: list[R2SoFar] = []
        self._store = store
        self._base = base
        self._appender: StoreAppender | None = None
        self._resumed_at = 0
        self._saved: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note where training goes on from: checkpoints up to there are this run's own."""
        self._resumed_at = state.global_step
        self._saved = []
        self._appender = StoreAppender(self._store, Path(args.output_dir, "r2.csv"), note=_logger.warning)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Append the checkpoint, and those before it that the store has not yet."""
        if not state.is_world_process_zero or self._appender is None:
            return
        self._saved.append(state.global_step)
        found = self._appender.append(
            self._checkpoints(Path(args.output_dir)), state.global_step, base=self._base
        )
        if found is not None:
            self.found.append(found)
            _logger.info("step %d: %s", state.global_step, found)
            figures = {
                name: getattr(found, name) for name in ("median", "null_median", "above_7", "null_above_7")
            }
            state.log_history.append(
                {"step": state.global_step, **{f"r2_{name}": value for name, value in figures.items()}}
            )

    def _checkpoints(self, output_dir: Path) -> list[Path]:
        """List the checkpoints of this training; an earlier one may have left others in the directory."""
        steps = {*self._saved}
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
            if number.isdecimal() and int(number) <= self._resumed_at:
                steps.add(int(number))
        paths = [output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}" for step in sorted(steps)]
        # Rotation deletes older ones; the newest has to be there, and is missed by name if it is not.
        return [path for path in paths if path.exists() or path == paths[-1]]
