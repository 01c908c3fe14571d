"""Every error that ckptlin raises on purpose.

::

    CkptlinError
    ├── InputError (ValueError)                an argument or option that makes no sense
    │   └── SelectionError                     a step, tensor, pattern, fit or method that is not there
    ├── CheckpointError (ValueError)           something is wrong with a checkpoint on disk
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   ├── IncompleteCheckpointError          shards missing, files cut short
    │   ├── MalformedCheckpointError           unreadable header, unsafe index, unsupported dtype
    │   └── CheckpointMismatchError            checkpoints of one run that do not fit together
    ├── StoreError (ValueError)                something is wrong with a trajectory store
    │   ├── NotAStoreError
    │   ├── StoreVersionError                  written by a newer ckptlin
    │   ├── CorruptChunkError                  a chunk that is missing or fails its checksum
    │   ├── StoreLockedError                   another process is writing
    │   ├── StepConflictError                  a step that is already there with other content
    │   └── StaleFitError                      a fit whose checkpoints have since been replaced
    ├── GradingError (ValueError)              a reward function that raises, or returns no score
    ├── NonFiniteError (ArithmeticError)       NaN or infinity where a number is needed
    ├── TrainingStoppedError (RuntimeError)    training went wrong and stopped; its last good state is kept
    ├── MemoryBudgetError (MemoryError)        the plan does not fit into ``--memory``
    ├── OutputExistsError (FileExistsError)
    ├── DiskFullError (OSError)
    └── MissingExtraError (ImportError)        an optional dependency is not installed

The command line turns each of them into one sentence and exit status 2.
"""

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CkptlinError",
    "CorruptChunkError",
    "DiskFullError",
    "GradingError",
    "IncompleteCheckpointError",
    "InputError",
    "MalformedCheckpointError",
    "MemoryBudgetError",
    "MissingExtraError",
    "NonFiniteError",
    "NotAStoreError",
    "OutputExistsError",
    "SelectionError",
    "StaleFitError",
    "StepConflictError",
    "StoreError",
    "StoreLockedError",
    "StoreVersionError",
    "TrainingStoppedError",
]


class CkptlinError(Exception):
    """Root of all errors raised on purpose; its message is written for the user."""


class InputError(CkptlinError, ValueError):
    """An argument or option that makes no sense."""


class SelectionError(InputError):
    """A step, tensor, pattern, fit or method that does not exist."""


class CheckpointError(CkptlinError, ValueError):
    """Something is wrong with a checkpoint on disk."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint where one was expected."""


class IncompleteCheckpointError(CheckpointError):
    """Shards are missing or cut short: the checkpoint is still being written, or was half deleted."""


class MalformedCheckpointError(CheckpointError):
    """A header that cannot be read, an index that points outside, a dtype without support."""


class CheckpointMismatchError(CheckpointError):
    """Checkpoints of one run differ in their tensors' names, shapes or dtypes."""


class StoreError(CkptlinError, ValueError):
    """Something is wrong with a trajectory store."""


class NotAStoreError(StoreError):
    """The path holds no trajectory store."""


class StoreVersionError(StoreError):
    """The store was written in a newer format than this ckptlin reads."""


class CorruptChunkError(StoreError):
    """A committed chunk is missing, cut short or fails its checksum."""


class StoreLockedError(StoreError):
    """Another process is writing to the store."""


class StepConflictError(StoreError):
    """A step is already in the store with other content, or would have to go before its end."""


class StaleFitError(StoreError):
    """A fit was computed from checkpoints that the store no longer holds."""


class GradingError(CkptlinError, ValueError):
    """A reward function raises, or returns something else than a score."""


class NonFiniteError(CkptlinError, ArithmeticError):
    """A NaN or infinite weight where a number is needed."""


class TrainingStoppedError(CkptlinError, RuntimeError):
    """Training went wrong and stopped; the last good checkpoint and resume point are kept."""


class MemoryBudgetError(CkptlinError, MemoryError):
    """An operation cannot run within its memory budget."""


class OutputExistsError(CkptlinError, FileExistsError):
    """The output is there already."""


class DiskFullError(CkptlinError, OSError):
    """The disk is full, or would be."""


class MissingExtraError(CkptlinError, ImportError):
    """An optional dependency is not installed."""
